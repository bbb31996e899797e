"""The schedule of a recipe as a plot and as text, to check it before hours are spent on it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from imagenet_rn50.learning_rate import decay_end, learning_rate
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.runs.plots import new_figure, save_figure
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.utils.files import require_writable_file
from imagenet_rn50.utils.formatting import counted, percent

# BatchNorm's running statistics alone take about 50 steps to forget their initial values.
_FEW_STEPS = 100


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
