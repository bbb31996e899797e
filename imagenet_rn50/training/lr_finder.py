"""The learning rate range test (Smith 2017), on the real model, data and ranks.

The learning rate grows exponentially with each step; the smoothed loss falls, reaches a minimum and
rises again: it diverges. The test stops there. A loss that falls once more at still higher rates,
as normalised networks' may, has lost what it had learned. At the minimum, steps undo each other;
half of its rate is suggested as the peak: of a quadratic with curvature c, the loss diverges beyond
2 / c and falls fastest at 1 / c.
"""

from __future__ import annotations

import itertools
import math
import statistics
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
_RISE = 0.25  # of how far the smoothed loss had fallen: it diverged
_NOISE_RISE = 3.0  # standard deviations of the loss of a batch, that a rise must exceed, too
_LEAST_STEPS = 15  # before it is known how much batches differ
_SAFETY = 2.0


@dataclass(frozen=True)
class Ramp:
    """Result of a range test.

    Attributes:
        rates: Learning rate of each step.
        losses: Loss of each step, nats.
        smoothed: Smoothed loss of each step, nats.
        suggestion: Suggested peak learning rate.
        diverged_at: Learning rate at which the loss had diverged; None if it never did.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float
    diverged_at: float | None = None


def ramp(step: Callable[[float], float], num_steps: int = NUM_STEPS) -> Ramp:
    """Take steps at growing learning rates until the loss diverges.

    Args:
        step: Takes one training step at a learning rate, and returns the loss before it.
        num_steps: Number of steps from `LOWEST` to `HIGHEST`.

    Raises:
        RuntimeError: If the loss is not finite at the first step.
    """
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average, diverged_at = 0.0, None
    for number in range(num_steps):
        rate = LOWEST * (HIGHEST / LOWEST) ** (number / (num_steps - 1))
        loss = step(rate)
        if not math.isfinite(loss):
            diverged_at = rate
            break
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        rates.append(rate)
        losses.append(loss)
        smoothed.append(average / (1 - _SMOOTHING ** (number + 1)))
        if _has_diverged(losses, smoothed):
            diverged_at = rate
            break
    if not rates:
        raise RuntimeError(f"the loss is not finite at the lowest learning rate, {LOWEST:g}")
    best = min(range(len(rates)), key=smoothed.__getitem__)
    return Ramp(rates, losses, smoothed, rates[best] / _SAFETY, diverged_at)


def _has_diverged(losses: list[float], smoothed: list[float]) -> bool:
    """Return whether the smoothed loss rose again, by more than batches differ."""
    if len(losses) < _LEAST_STEPS:
        return False
    changes = [abs(after - before) for before, after in itertools.pairwise(losses)]
    # Of the difference of two losses; the median is 0.6745 standard deviations if it is normal.
    noise = statistics.median(changes) / 0.6745 / math.sqrt(2)
    lowest = min(smoothed)
    threshold = max(_RISE * (smoothed[0] - lowest), _NOISE_RISE * noise)
    return smoothed[-1] - lowest > threshold


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
            f"suggested peak: --optimizer.lr {found.suggestion:.3g}, half of the rate with the "
            f"lowest smoothed loss; {_end_in_words(found)}\n"
            f"  rates and losses: {table}\n  plot: {plot}"
        )
    return found


def _end_in_words(found: Ramp) -> str:
    """Return where the test ended, and what that means for the suggestion."""
    if found.diverged_at is not None:
        return f"the loss diverged at {found.diverged_at:.3g}"
    return f"the loss did not diverge up to {found.rates[-1]:.3g}: try higher rates, too"


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
    axes.axvline(found.suggestion, linestyle="--", color="gray", label="suggested peak")
    if found.diverged_at is not None:
        axes.axvline(found.diverged_at, linestyle=":", color="firebrick", label="diverged")
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
