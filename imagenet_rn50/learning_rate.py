"""The learning rate as a function of progress, without state; only the plateau rule remembers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from imagenet_rn50.recipe import Recipe


def learning_rate(recipe: Recipe, epoch: float, num_cuts: int = 0) -> float:
    """Return the learning rate at a point of the run.

    Warm-up from `start_factor` x peak to the peak at `warmup_epochs`: by a cosine for `onecycle`
    (Smith and Topin 2018, as in torch's OneCycleLR), linearly for the others. Then decay to
    `end_factor` x peak at `decay_until`: by a cosine for `onecycle` and `cosine`, linearly for
    `linear`, by `gamma` at each milestone for `step`; `constant` does not decay.

    Args:
        recipe: Its schedule, peak and epochs.
        epoch: Epochs done, fractional, in [0, recipe.epochs].
        num_cuts: Number of times that the plateau rule has cut the learning rate.
    """
    schedule, peak = recipe.schedule, recipe.optimizer.lr
    if epoch < schedule.warmup_epochs:
        part = epoch / schedule.warmup_epochs
        return _between(schedule.start_factor * peak, peak, part, schedule.name == "onecycle")
    if schedule.name in {"step", "constant"}:
        num_passed = sum(epoch >= milestone for milestone in schedule.milestones)
        rate = peak * schedule.gamma**num_passed
    else:
        part = (epoch - schedule.warmup_epochs) / (decay_end(recipe) - schedule.warmup_epochs)
        end = schedule.end_factor * peak
        rate = _between(peak, end, min(part, 1.0), schedule.name != "linear")
    return rate * schedule.plateau_factor**num_cuts


def decay_end(recipe: Recipe) -> float:
    """Return the epoch at which the decay ends."""
    schedule = recipe.schedule
    if schedule.name in {"step", "constant"}:
        return max(schedule.milestones, default=schedule.warmup_epochs)
    if schedule.decay_until is not None:
        return schedule.decay_until
    return max(float(recipe.epochs), schedule.warmup_epochs + 1)  # the run ends during its warm-up


class Plateau:
    """Cut the learning rate when the validation loss stops falling, like ReduceLROnPlateau.

    Active only after the decay: before that, the schedule itself changes the learning rate.

    Args:
        recipe: Its schedule has the patience and threshold.

    Attributes:
        num_cuts: Number of cuts so far.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.num_cuts = 0
        self._lowest = math.inf
        self._num_waited = 0

    def after_validation(self, epoch: float, loss: float) -> bool:
        """Update with a validation; return whether it cuts the learning rate.

        Args:
            epoch: Epochs done, fractional.
            loss: Validation loss, nats; equal on all ranks.
        """
        schedule = self._recipe.schedule
        if schedule.plateau_patience is None or epoch < decay_end(self._recipe):
            return False
        if loss < self._lowest * (1 - schedule.plateau_threshold):
            self._lowest, self._num_waited = loss, 0
            return False
        self._num_waited += 1
        if self._num_waited <= schedule.plateau_patience:
            return False
        self.num_cuts, self._num_waited = self.num_cuts + 1, 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as JSON."""
        return {
            "num_cuts": self.num_cuts,
            "lowest": self._lowest if math.isfinite(self._lowest) else None,  # JSON has no inf
            "num_waited": self._num_waited,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.num_cuts = state["num_cuts"]
        self._lowest = math.inf if state["lowest"] is None else state["lowest"]
        self._num_waited = state["num_waited"]


def _between(start: float, end: float, part: float, cosine: bool) -> float:
    """Interpolate between `start` and `end`, at `part` in [0, 1]."""
    weight = (1 - math.cos(math.pi * part)) / 2 if cosine else part
    return start + (end - start) * weight


def plateau_cuts(recipe: Recipe, validations: Iterable[tuple[float, float]]) -> Iterator[float]:
    """Yield the epoch of each cut of the plateau rule.

    Args:
        recipe: The recipe.
        validations: Epoch and validation loss of each validation, in order.
    """
    plateau = Plateau(recipe)
    for epoch, loss in validations:
        if plateau.after_validation(epoch, loss):
            yield epoch
