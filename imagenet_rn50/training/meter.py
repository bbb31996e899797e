"""The meter: what happened between two lines of the journal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from imagenet_rn50.evaluation.validate import Reduce
from imagenet_rn50.training.seen import as_int64, hash_of_samples, wrapped


class Meter:
    """Adds up losses on the device and times on the clock; reading it starts it anew.

    Args:
        device: Where the losses are.
        world_size: Number of ranks.
        samples_hash: Of the samples that the run has seen before.

    Attributes:
        samples_hash: Of those that it has seen until the last reading, by all ranks.
    """

    def __init__(self, device: torch.device, world_size: int, samples_hash: int = 0) -> None:
        self._device = device
        self._world_size = world_size
        self.samples_hash = samples_hash
        self._hash_since = self._hash_of_step = 0
        self._ends_of_steps: deque[torch.cuda.Event] = deque()
        self.restart()

    def restart(self) -> None:
        """Forgets everything so far."""
        self.num_steps = 0
        self._num_images = 0
        self._num_skipped = 0
        self._loss = torch.zeros((), device=self._device)
        self._waited = 0.0
        self._began = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the body's time as waiting for data.

        A GPU is waited for first, until it is less than two steps behind: while it has more to do,
        a host that waits for data keeps nobody waiting.
        """
        while len(self._ends_of_steps) > 1:
            self._ends_of_steps.popleft().synchronize()
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def saw(self, position: int, indices: Tensor) -> None:
        """Notes which samples this rank trains on; `indices` is (B,) int64, on the host.

        They count once their step is finished.
        """
        self._hash_of_step += hash_of_samples(position, indices)

    def after_step(self, losses: list[Tensor], num_images: int, *, skipped: bool) -> None:
        """Adds one optimizer step.

        Args:
            losses: Mean loss of each micro batch of this rank, scalars on the device.
            num_images: Images in the step, all ranks together.
            skipped: Whether the weights stayed, because fp16 gradients overflowed.
        """
        if self._device.type == "cuda":
            self._ends_of_steps.append(torch.cuda.Event(blocking=True))
            self._ends_of_steps[-1].record()
        self._hash_since, self._hash_of_step = self._hash_since + self._hash_of_step, 0
        self._num_skipped += skipped
        self._loss += torch.stack(losses).mean()
        self.num_steps += 1
        self._num_images += num_images

    def read(self, reduce: Reduce) -> dict[str, Any]:
        """Returns what happened since the last reading; every rank calls it.

        Args:
            reduce: Adds a tensor up over all ranks.

        Returns:
            Mean `loss` over all ranks, nats; `num_images` and `images_per_second`, all ranks
            together; `data_wait`, part of this rank's time, in [0, 1]; `seconds`; `samples_hash`,
            16 hexadecimal digits; where they are not zero, `skipped_steps` and `gpu_gib`, the peak
            of this rank's GPU memory.
        """
        loss = reduce(self._loss).item() / (self.num_steps * self._world_size)  # waits for device
        seconds = time.perf_counter() - self._began
        since = torch.tensor(as_int64(wrapped(self._hash_since)), device=self._device)
        self.samples_hash = wrapped(self.samples_hash + int(reduce(since).item()))
        self._hash_since = 0
        line: dict[str, Any] = {
            "loss": loss,
            "num_images": self._num_images,
            "images_per_second": self._num_images / seconds,
            "data_wait": self._waited / seconds,
            "seconds": seconds,
            "samples_hash": f"{self.samples_hash:016x}",
        }
        if self._num_skipped:
            line["skipped_steps"] = self._num_skipped
        if self._device.type == "cuda":
            line["gpu_gib"] = torch.cuda.max_memory_reserved(self._device) / 2**30
        self.restart()
        return line


def in_short(line: dict[str, Any], lr: float) -> str:
    """Returns what a reading says in a few words, for the end of a progress bar."""
    text = f"loss {line['loss']:.3f}, lr {lr:.3g}, data wait {line['data_wait']:.0%}"
    return text + (f", {line['gpu_gib']:.1f} GiB" if "gpu_gib" in line else "")
