"""The schedule of a recipe, drawn and in words, before hours are spent on it."""

from __future__ import annotations

from pathlib import Path

from imagenet_rn50.figures import new_figure, save_figure
from imagenet_rn50.files import require_place
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


def schedule_in_words(recipe: Recipe) -> str:
    """Return the course of the learning rate, and what the run would leave out of it."""
    schedule, peak = recipe.schedule, recipe.optimizer.lr
    lines = [
        f"epoch 0: {learning_rate(recipe, 0):.3g}",
        f"epoch {schedule.warmup_epochs:g}: {peak:.3g}, the peak",
    ]
    lines += [
        f"epoch {milestone:g}: {learning_rate(recipe, milestone):.3g}"
        for milestone in schedule.milestones
    ]
    if schedule.name not in {"step", "constant"}:
        end = decay_end(recipe)
        lines.append(f"epoch {end:g}: {learning_rate(recipe, end):.3g}, the end of the decay")
    if schedule.plateau_patience is not None:
        lines.append(
            f"from there on x {schedule.plateau_factor:g} whenever the validation loss did not "
            f"fall for more than {schedule.plateau_patience} evaluations"
        )
    lines.append(f"epoch {recipe.epochs}: the run ends")
    found = list(schedule_warnings(recipe))
    lines += [f"mind: {concern}" for concern in found] or ["nothing of it is left out"]
    return "\n".join(lines)
