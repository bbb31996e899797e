"""The learning rate range test (Smith 2017), on the real model, data and ranks.

The learning rate grows exponentially with each step; the smoothed loss falls, reaches its minimum
and explodes. The rate at the minimum is too high to train with: steps there nearly undo each other.
A third of it is suggested as the peak.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from imagenet_rn50.runs.plots import new_figure, save_figure
from imagenet_rn50.training.losses import LABELS
from imagenet_rn50.training.trainer import Trainer
from imagenet_rn50.utils.files import write_json
from imagenet_rn50.utils.logging import logger, progress_bar

LOWEST, HIGHEST = 1e-5, 10.0
NUM_STEPS = 100
_SMOOTHING = 0.9  # of the loss, as an exponential moving average without bias
_EXPLODED = 4.0  # times the lowest smoothed loss
_SAFETY = 3.0


@dataclass(frozen=True)
class Ramp:
    """Result of a range test.

    Attributes:
        rates: Learning rate of each step.
        losses: Loss of each step, nats.
        smoothed: Smoothed loss of each step, nats.
        suggestion: Suggested peak learning rate.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float


def ramp(step: Callable[[float], float], num_steps: int = NUM_STEPS) -> Ramp:
    """Take steps at growing learning rates until the loss explodes.

    Args:
        step: Takes one training step at a learning rate, and returns the loss before it.
        num_steps: Number of steps from `LOWEST` to `HIGHEST`.

    Raises:
        RuntimeError: If the loss is not finite at the first step.
    """
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    for number in range(num_steps):
        rate = LOWEST * (HIGHEST / LOWEST) ** (number / (num_steps - 1))
        loss = step(rate)
        if not math.isfinite(loss):
            break
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        rates.append(rate)
        losses.append(loss)
        smoothed.append(average / (1 - _SMOOTHING ** (number + 1)))
        if smoothed[-1] > _EXPLODED * min(smoothed):
            break
    if not rates:
        raise RuntimeError(f"the loss is not finite at the lowest learning rate, {LOWEST:g}")
    best = min(range(len(rates)), key=smoothed.__getitem__)
    return Ramp(rates, losses, smoothed, rates[best] / _SAFETY)


def find_lr(trainer: Trainer, num_steps: int = NUM_STEPS) -> Ramp:
    """Run the range test from the trainer's weights, and restore all state afterwards.

    All ranks call it; one writes `lr_finder.json` and `lr_finder.png` into the run directory and
    logs the suggestion.

    Args:
        trainer: A trainer that has not trained yet.
        num_steps: Number of steps.
    """
    recipe, is_main = trainer.recipe, trainer.accelerator.is_main_process
    before = trainer.state.snapshot()
    loader = trainer.train_loader(0, num_steps * recipe.global_batch)
    batches = trainer.to_device(loader)
    positions = itertools.count(0, recipe.global_batch)
    with (
        closing(trainer.flags),
        closing(loader),
        progress_bar(total=num_steps, description="find lr", unit="step", enabled=is_main) as bar,
    ):

        def step(rate: float) -> float:
            trainer.train_step(batches, rate, position=next(positions))
            bar.update()
            return float(trainer.meter.compute_and_reset(trainer.all_reduce_sum)["loss"])

        found = ramp(step, num_steps)
    trainer.state.restore(before)
    if is_main:
        table, plot = write(found, trainer.run.path, loss=LABELS[recipe.loss])
        logger.info(
            f"suggested peak: --optimizer.lr {found.suggestion:.3g}, a third of the rate with the "
            f"lowest smoothed loss\n  rates and losses: {table}\n  plot: {plot}"
        )
    return found


def write(found: Ramp, folder: Path, *, loss: str) -> tuple[Path, Path]:
    """Write `lr_finder.json` and `lr_finder.png`.

    Args:
        found: From `ramp`.
        folder: Directory to write to; created if it does not exist.
        loss: Name and unit of the loss, for the plot.

    Returns:
        Both paths.
    """
    table, plot = folder / "lr_finder.json", folder / "lr_finder.png"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(table, vars(found))
    figure = new_figure()
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses, alpha=0.3, label="loss")
    axes.plot(found.rates, found.smoothed, label="smoothed")
    axes.axvline(found.suggestion, linestyle="--", color="gray")
    axes.set(
        xscale="log",
        xlabel="learning rate",
        ylabel=loss,
        title=f"suggested peak: {found.suggestion:.3g}",
    )
    axes.set_ylim(0, 1.5 * found.smoothed[0])
    axes.legend(frameon=False)
    save_figure(figure, plot)
    return table, plot
