"""The learning rate as a pure function of progress: nothing to save, nothing to step."""

from __future__ import annotations

import math

from imagenet_rn50.recipe import Recipe


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """Returns the learning rate at a point of the run.

    From `start_factor` x peak up to the peak at `warmup_epochs`, then down to `end_factor` x peak
    at the end of the last epoch: both by a cosine for `onecycle` (Smith and Topin 2018, in the form
    of torch's OneCycleLR), linear up and cosine down for `cosine`, linear both ways for `linear`.

    Args:
        recipe: Its schedule, peak and length.
        epoch: Epochs done so far, fractional, in [0, recipe.epochs].
    """
    schedule, peak = recipe.schedule, recipe.optimizer.lr
    if epoch < schedule.warmup_epochs:
        part = epoch / schedule.warmup_epochs
        return _between(schedule.start_factor * peak, peak, part, schedule.name == "onecycle")
    decay_epochs = recipe.epochs - schedule.warmup_epochs
    part = min((epoch - schedule.warmup_epochs) / decay_epochs, 1.0)
    return _between(peak, schedule.end_factor * peak, part, schedule.name != "linear")


def _between(start: float, end: float, part: float, cosine: bool) -> float:
    """Returns the value `part` of the way from `start` to `end`, part in [0, 1]."""
    travelled = (1 - math.cos(math.pi * part)) / 2 if cosine else part
    return start + (end - start) * travelled
