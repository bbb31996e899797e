"""The learning rate as a function of progress: nothing to step, and only a plateau remembers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from imagenet_rn50.recipe import Recipe


def learning_rate(recipe: Recipe, epoch: float, num_cuts: int = 0) -> float:
    """Returns the learning rate at a point of the run.

    From `start_factor` x peak up to the peak at `warmup_epochs`: by a cosine for `onecycle` (Smith
    and Topin 2018, in the form of torch's OneCycleLR), linearly for the others. Then down to
    `end_factor` x peak at `decay_until`: by a cosine for `onecycle` and `cosine`, linearly for
    `linear`; by `gamma` at each milestone for `step`; not at all for `constant`.

    Args:
        recipe: Its schedule, peak and length.
        epoch: Epochs done so far, fractional, in [0, recipe.epochs].
        num_cuts: How often a plateau has cut the rate.
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
    """Returns the epoch at which the decay ends."""
    schedule = recipe.schedule
    if schedule.name in {"step", "constant"}:
        return max(schedule.milestones, default=schedule.warmup_epochs)
    if schedule.decay_until is not None:
        return schedule.decay_until
    return max(float(recipe.epochs), schedule.warmup_epochs + 1)  # a run that ends in its warm-up


class Plateau:
    """Cuts the rate when the validation loss stays level, as torch's ReduceLROnPlateau does.

    It watches from the end of the decay on: before that, the schedule itself moves the rate.

    Args:
        recipe: Its schedule says how long to wait.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.num_cuts = 0
        self._lowest = math.inf
        self._num_waited = 0

    def after_validation(self, epoch: float, loss: float) -> bool:
        """Takes note of a validation, and says whether it cuts the rate.

        Args:
            epoch: Epochs done so far.
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
        """Returns what a checkpoint must hold."""
        return {
            "num_cuts": self.num_cuts,
            "lowest": self._lowest if math.isfinite(self._lowest) else None,  # JSON has no inf
            "num_waited": self._num_waited,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what a checkpoint holds."""
        self.num_cuts = state["num_cuts"]
        self._lowest = math.inf if state["lowest"] is None else state["lowest"]
        self._num_waited = state["num_waited"]


def concerns(recipe: Recipe) -> Iterator[str]:
    """Yields, in words, what a run of this length would leave out of its schedule."""
    schedule, epochs, peak = recipe.schedule, recipe.epochs, recipe.optimizer.lr
    last = learning_rate(recipe, epochs)
    if schedule.warmup_epochs >= epochs:
        yield (
            f"the run ends after {epochs} epochs, before its peak: the rate would rise to {peak:g} "
            f"at epoch {schedule.warmup_epochs:g}, and reaches {last:.3g}"
        )
        return
    if schedule.name != "constant" and decay_end(recipe) > epochs:
        yield (
            f"the run ends after {epochs} epochs, before its decay does at epoch "
            f"{decay_end(recipe):g}: it stops at {last:.3g}, {last / peak:.0%} of the peak"
        )
    if schedule.plateau_patience is not None and decay_end(recipe) >= epochs:
        yield "the plateau rule never acts: it waits for the end of the decay"


def _between(start: float, end: float, part: float, cosine: bool) -> float:
    """Returns the value `part` of the way from `start` to `end`, part in [0, 1]."""
    travelled = (1 - math.cos(math.pi * part)) / 2 if cosine else part
    return start + (end - start) * travelled
