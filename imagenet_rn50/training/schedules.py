"""The learning rate as a function of progress: nothing to step, and only a plateau remembers.

The schedule of a recipe, drawn and in words, before hours are spent on it.
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

# BatchNorm's running statistics alone take some 50 steps to forget where they began.
_FEW_STEPS = 100


def learning_rate(recipe: Recipe, epoch: float, num_cuts: int = 0) -> float:
    """Return the learning rate at a point of the run.

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
    """Return the epoch at which the decay ends."""
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
        """Take note of a validation, and says whether it cuts the rate.

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
        """Return what a checkpoint must hold."""
        return {
            "num_cuts": self.num_cuts,
            "lowest": self._lowest if math.isfinite(self._lowest) else None,  # JSON has no inf
            "num_waited": self._num_waited,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint holds."""
        self.num_cuts = state["num_cuts"]
        self._lowest = math.inf if state["lowest"] is None else state["lowest"]
        self._num_waited = state["num_waited"]


def schedule_warnings(recipe: Recipe, num_train: int | None = None) -> Iterator[str]:
    """Yields, in words, what a run of this length would leave out of its schedule.

    Args:
        recipe: Its schedule, peak and length.
        num_train: Training images, to count optimizer steps; None where they are not known.
    """
    schedule, epochs, peak = recipe.schedule, recipe.epochs, recipe.optimizer.lr
    last, end = learning_rate(recipe, epochs), decay_end(recipe)
    ends = f"the run ends after {counted(epochs, 'epoch')}"
    if num_train is not None:
        yield from _few_steps(recipe, num_train)
    if schedule.warmup_epochs >= epochs:
        if last < peak:
            yield (
                f"{ends}, before its peak: the rate stops at {last:.3g}, {percent(last / peak)} "
                f"of the {peak:g} that it would reach at epoch {schedule.warmup_epochs:g}"
            )
        elif schedule.name != "constant":
            yield f"{ends}, while the rate is at its peak, {peak:g}: it never falls"
        return
    if any(milestone <= schedule.warmup_epochs for milestone in schedule.milestones):
        yield (
            f"a milestone lies within the warm-up of {schedule.warmup_epochs:g} epochs: the rate "
            f"never reaches its peak, {peak:g}"
        )
    if schedule.name != "constant" and end > epochs:
        yield (
            f"{ends}, before its decay does at epoch {end:g}: it stops at {last:.3g}, "
            f"{percent(last / peak)} of the peak"
        )
    yield from _idle_plateau(recipe)


def _few_steps(recipe: Recipe, num_train: int) -> Iterator[str]:
    """Yields that a run has too few optimizer steps to learn much."""
    num_steps = Progress.of(recipe, num_train).total_samples // recipe.global_batch
    if num_steps < _FEW_STEPS:
        yield (
            f"the run takes {counted(num_steps, 'optimizer step')} in all, of "
            f"{counted(recipe.global_batch, 'image')} each: a network hardly learns in so few, "
            "use more epochs or a smaller global_batch"
        )


def _idle_plateau(recipe: Recipe) -> Iterator[str]:
    """Yields that the plateau rule cannot cut the rate before the run ends."""
    patience, end = recipe.schedule.plateau_patience, decay_end(recipe)
    if patience is None:
        return
    # The first evaluation sets the mark, and a cut after the last one changes nothing.
    first_cut = math.ceil(end) + patience + 1
    if first_cut >= recipe.epochs:
        yield (
            f"the plateau rule never acts: it waits for the end of the decay, epoch {end:g}, and "
            f"then for {counted(patience + 1, 'evaluation')} without progress"
        )


def _between(start: float, end: float, part: float, cosine: bool) -> float:
    """Return the value `part` of the way from `start` to `end`, part in [0, 1]."""
    travelled = (1 - math.cos(math.pi * part)) / 2 if cosine else part
    return start + (end - start) * travelled


_POINTS_PER_EPOCH = 20


def draw_schedule(recipe: Recipe, name: str, out: Path) -> None:
    """Draws learning rate and crop size over the run into a PNG file.

    Args:
        recipe: What is drawn.
        name: Its name, for the title.
        out: The file.

    Raises:
        InputError: When it cannot be written.
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
    """Returns the course of the learning rate, and what the run would leave out of it.

    Args:
        recipe: What is told.
        num_train: Training images, to count optimizer steps; None where they are not known.
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
            f"from epoch {end:g} on x {schedule.plateau_factor:g} whenever the validation loss did "
            f"not fall for more than {counted(schedule.plateau_patience, 'evaluation')}"
        )
    found = list(schedule_warnings(recipe, num_train))
    lines += [f"warning: {concern}" for concern in found] or ["nothing of it is left out"]
    return "\n".join(lines)
