"""Progress: one integer. Epoch, step and learning rate follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from imagenet_rn50.recipe import Recipe


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    A run takes whole global batches until every image was seen `epochs` times; the last batch takes
    what it lacks from the epoch that would follow, so nothing is dropped and nothing padded.

    Args:
        samples_seen: Training images seen so far, all ranks together.
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
        """Returns where a run of `recipe` stands after `samples_seen` images."""
        return cls(samples_seen, samples_per_epoch, recipe.epochs, recipe.global_batch)

    @property
    def total_samples(self) -> int:
        """Where the run will end, in samples: its epochs, rounded up to a whole global batch."""
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
        """Returns the first step boundary from here that is at or after `samples`."""
        num_steps = -(-(samples - self.samples_seen) // self.global_batch)
        return self.samples_seen + max(num_steps, 0) * self.global_batch

    def after_step(self) -> Progress:
        """Returns where the run stands one global batch later."""
        return replace(self, samples_seen=self.samples_seen + self.global_batch)
