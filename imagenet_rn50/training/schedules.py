"""The learning rate as a function of progress, without state; only the plateau rule remembers.

Also the schedule of a recipe as a plot and as text, to check it before hours are spent on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagenet_rn50.recipe import Recipe
from imagenet_rn50.runs.plots import new_figure, save_figure
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.utils.files import require_writable_file
from imagenet_rn50.utils.formatting import counted, percent

# BatchNorm's running statistics alone take about 50 steps to forget their initial values.
_FEW_STEPS = 100


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


def schedule_warnings(recipe: Recipe, num_train: int | None = None) -> Iterator[str]:
    """Yield a warning for each part of the schedule that a run of this length would not reach.

    Args:
        recipe: Its schedule, peak and epochs.
        num_train: Number of training images, to count optimizer steps; None if unknown.
    """
    schedule, epochs, peak = recipe.schedule, recipe.epochs, recipe.optimizer.lr
    last, end = learning_rate(recipe, epochs), decay_end(recipe)
    ends = f"the run ends after {counted(epochs, 'epoch')}"
    if num_train is not None:
        yield from _few_steps(recipe, num_train)
    if schedule.warmup_epochs >= epochs:
        if last < peak:
            yield (
                f"{ends}, before its peak: the learning rate ends at {last:.3g}, "
                f"{percent(last / peak)} of the peak, {peak:g}, at epoch {schedule.warmup_epochs:g}"
            )
        elif schedule.name != "constant":
            yield f"{ends}, with the learning rate at its peak of {peak:g}: it never decays"
        return
    if any(milestone <= schedule.warmup_epochs for milestone in schedule.milestones):
        yield (
            f"a milestone is within the warm-up of {schedule.warmup_epochs:g} epochs: the learning "
            f"rate never reaches its peak of {peak:g}"
        )
    if schedule.name != "constant" and end > epochs:
        yield (
            f"{ends}, before its decay does at epoch {end:g}: the learning rate ends at "
            f"{last:.3g}, {percent(last / peak)} of the peak"
        )
    yield from _idle_plateau(recipe)


def _few_steps(recipe: Recipe, num_train: int) -> Iterator[str]:
    """Yield a warning if the run has too few optimizer steps to learn much."""
    num_steps = Progress.of(recipe, num_train).total_samples // recipe.global_batch
    if num_steps < _FEW_STEPS:
        yield (
            f"the run has only {counted(num_steps, 'optimizer step')} of "
            f"{counted(recipe.global_batch, 'image')}: a network hardly learns in so few; "
            "use more epochs or a smaller global_batch"
        )


def _idle_plateau(recipe: Recipe) -> Iterator[str]:
    """Yield a warning if the plateau rule cannot cut the learning rate before the run ends."""
    patience, end = recipe.schedule.plateau_patience, decay_end(recipe)
    if patience is None:
        return
    # The first validation sets the lowest loss, and a cut after the last one has no effect.
    first_cut = math.ceil(end) + patience + 1
    if first_cut >= recipe.epochs:
        yield (
            f"the plateau rule never acts: it needs the end of the decay, epoch {end:g}, and "
            f"then {counted(patience + 1, 'validation')} without a lower loss"
        )


def _between(start: float, end: float, part: float, cosine: bool) -> float:
    """Interpolate between `start` and `end`, at `part` in [0, 1]."""
    weight = (1 - math.cos(math.pi * part)) / 2 if cosine else part
    return start + (end - start) * weight


_POINTS_PER_EPOCH = 20


def draw_schedule(recipe: Recipe, name: str, out: Path) -> None:
    """Plot learning rate and crop size over the run into a PNG file.

    Args:
        recipe: The recipe.
        name: Its name, for the title.
        out: The file.

    Raises:
        InputError: If it cannot be written.
    """
    require_writable_file(out)
    epochs = [point / _POINTS_PER_EPOCH for point in range(recipe.epochs * _POINTS_PER_EPOCH + 1)]
    figure = new_figure()
    axes = figure.add_subplot()
    axes.plot(epochs, [learning_rate(recipe, epoch) for epoch in epochs])
    axes.set(title=name, xlabel="epoch", ylabel="learning rate")
    axes.grid(alpha=0.3)
    if recipe.data.final_size is not None:
        sizes = axes.twinx()
        sides = [recipe.data.size_at(int(epoch)) for epoch in epochs]
        sizes.plot(epochs, sides, color="gray", linestyle="--")
        sizes.set_ylabel("side of training crops, px (dashed)")
    save_figure(figure, out)


def schedule_in_words(recipe: Recipe, num_train: int | None = None) -> str:
    """Return the learning rate at the epochs that matter, and all warnings, as text.

    Args:
        recipe: The recipe.
        num_train: Number of training images, to count optimizer steps; None if unknown.
    """
    schedule, end = recipe.schedule, decay_end(recipe)
    notes: dict[float, list[str]] = {0.0: [], schedule.warmup_epochs: []}
    notes |= {milestone: [] for milestone in schedule.milestones}
    if learning_rate(recipe, schedule.warmup_epochs) == recipe.optimizer.lr:
        notes[schedule.warmup_epochs].append("the peak")
    if schedule.name not in {"step", "constant"}:
        notes.setdefault(end, []).append("the end of the decay")
    notes.setdefault(float(recipe.epochs), []).append("the end of the run")
    lines = [
        ", ".join([f"epoch {epoch:g}: {learning_rate(recipe, epoch):.3g}", *notes[epoch]])
        for epoch in sorted(notes)
        if epoch <= recipe.epochs
    ]
    if schedule.plateau_patience is not None and end < recipe.epochs:
        lines.append(
            f"from epoch {end:g}: x {schedule.plateau_factor:g} after more than "
            f"{counted(schedule.plateau_patience, 'validation')} without a lower validation loss"
        )
    warnings = list(schedule_warnings(recipe, num_train))
    lines += [f"warning: {warning}" for warning in warnings] or ["no warnings"]
    return "\n".join(lines)
