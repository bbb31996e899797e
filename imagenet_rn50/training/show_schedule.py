"""The schedule of a recipe, drawn and in words, before hours are spent on it."""

from __future__ import annotations

from pathlib import Path

from imagenet_rn50.figures import new_figure, save_figure
from imagenet_rn50.files import require_place
from imagenet_rn50.formatting import counted
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.training.schedules import decay_end, learning_rate, schedule_warnings

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
    require_place(out)
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
