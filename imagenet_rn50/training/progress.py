"""Progress of a run: one integer. Epoch, step and learning rate follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from imagenet_rn50.recipe import Recipe
from imagenet_rn50.utils.errors import InputError


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    A run consists of whole global batches, until every image was seen `epochs` times. The last
    batch is filled from the epoch that would follow, so nothing is dropped or padded.

    Args:
        samples_seen: Training images seen so far, on all ranks together.
        samples_per_epoch: Size of the training split.
        epochs: Length of the run.
        global_batch: Images in a step.
    """

    samples_seen: int
    samples_per_epoch: int
    epochs: int
    global_batch: int

    @classmethod
    def of(cls, recipe: Recipe, samples_per_epoch: int, samples_seen: int = 0) -> Progress:
        """Return the progress of a run of `recipe` after `samples_seen` images."""
        return cls(samples_seen, samples_per_epoch, recipe.epochs, recipe.global_batch)

    @property
    def total_samples(self) -> int:
        """Samples of the whole run: its epochs, rounded up to a whole global batch."""
        return self._boundary_after(self.epochs * self.samples_per_epoch)

    @property
    def epoch(self) -> float:
        """Epochs done, fractional, at most `epochs`."""
        return min(self.samples_seen / self.samples_per_epoch, float(self.epochs))

    @property
    def step(self) -> int:
        """Optimizer steps done, if all were of this global batch."""
        return self.samples_seen // self.global_batch

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return self.samples_seen >= self.epochs * self.samples_per_epoch

    @property
    def next_epoch_end(self) -> int:
        """First step boundary from here, in samples, at which one more whole epoch is done."""
        epochs_done = self.samples_seen // self.samples_per_epoch
        return self._boundary_after((epochs_done + 1) * self.samples_per_epoch)

    def _boundary_after(self, samples: int) -> int:
        """Return the first step boundary from here that is at or after `samples`."""
        num_steps = -(-(samples - self.samples_seen) // self.global_batch)
        return self.samples_seen + max(num_steps, 0) * self.global_batch

    def after_step(self) -> Progress:
        """Return the progress one global batch later."""
        return replace(self, samples_seen=self.samples_seen + self.global_batch)


def require_global_batch(recipe: Recipe, num_samples: int, world_size: int) -> None:
    """Refuse a training split that is smaller than a global batch.

    Each step would train on images several times, at a rate meant for that many different ones.

    Args:
        recipe: Hyperparameters.
        num_samples: Size of the training split.
        world_size: Number of ranks.

    Raises:
        InputError: If it is; the message names a batch that fits.
    """
    if num_samples >= recipe.global_batch:
        return
    micro_batch = max(min(recipe.micro_batch, num_samples // world_size), 1)
    fitting = num_samples // (micro_batch * world_size) * micro_batch * world_size
    lr = recipe.optimizer.lr * fitting / recipe.global_batch
    raise InputError(
        f"the training split has {num_samples} images, fewer than one global batch of "
        f"{recipe.global_batch}",
        expected="at least one global batch; each step would train on images several times",
        fix=f"--global-batch {fitting} --micro-batch {micro_batch}, with the learning rate scaled "
        f"in proportion: --optimizer.lr {lr:.3g}"
        if fitting
        else f"train on at most {num_samples} processes",
    )
