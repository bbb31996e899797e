"""Metrics of training between two lines of metrics.jsonl: loss, speed, data wait, cost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from imagenet_rn50.evaluation.evaluate import Reduce
from imagenet_rn50.peaks import format_utilisation
from imagenet_rn50.runs.metrics import FILE_NAME, read_metrics
from imagenet_rn50.runs.run_dir import RunDir
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.training.sample_hash import as_int64, hash_of_samples, wrapped


class Meter:
    """Accumulate losses on the device, and times on the host, until `compute_and_reset`.

    Args:
        device: Device of the losses.
        world_size: Number of ranks.
        sample_hash: Hash of the samples that the run has seen before.

    Attributes:
        sample_hash: Hash of all samples up to the last `compute_and_reset`, on all ranks.
    """

    def __init__(self, device: torch.device, world_size: int, sample_hash: int = 0) -> None:
        self._device = device
        self._world_size = world_size
        self.sample_hash = sample_hash
        self._hash_since = self._hash_of_step = 0
        self._flops_of_step = 0
        self._ends_of_steps: deque[torch.cuda.Event] = deque()
        self.reset()

    def reset(self) -> None:
        """Discard everything since the last call."""
        self.num_steps = 0
        self._num_images = 0
        self._num_skipped = 0
        self._flops = 0
        self._loss = torch.zeros((), device=self._device)
        self._waited = 0.0
        self._began = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the body as waiting for data.

        Waits for the GPU first, until it is at most one step behind: while it has more work queued,
        a host that waits for data delays nothing.
        """
        while len(self._ends_of_steps) > 1:
            self._ends_of_steps.popleft().synchronize()
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def update_hash(self, position: int, indices: Tensor) -> None:
        """Hash the samples that this rank trains on; they count once their step is finished.

        Args:
            position: Where the micro batch begins in the training stream.
            indices: Sample indices; (B,) int64, on the host.
        """
        self._hash_of_step += hash_of_samples(position, indices)

    def add_flops(self, flops: int) -> None:
        """Count FLOPs of this rank; like samples, they count once their step is finished."""
        self._flops_of_step += flops

    def after_step(self, losses: list[Tensor], num_images: int, *, skipped: bool) -> None:
        """Add one optimizer step.

        Args:
            losses: Mean loss of each micro batch of this rank, scalars on the device.
            num_images: Images in the step, all ranks together.
            skipped: Whether fp16 gradients overflowed, so that the weights were not updated.
        """
        if self._device.type == "cuda":
            self._ends_of_steps.append(torch.cuda.Event(blocking=True))
            self._ends_of_steps[-1].record()
        self._hash_since, self._hash_of_step = self._hash_since + self._hash_of_step, 0
        self._flops, self._flops_of_step = self._flops + self._flops_of_step, 0
        self._num_skipped += skipped
        self._loss += torch.stack(losses).mean()
        self.num_steps += 1
        self._num_images += num_images

    def compute_and_reset(self, reduce: Reduce) -> dict[str, Any]:
        """Return the metrics since the last call and start over; every rank calls it.

        `seconds` is the wall clock of training: steps, waiting for data, logging and saving, but
        not validation. All rates are of this time, `tflops` included, as in PaLM's MFU.

        Args:
            reduce: Sums a tensor over all ranks.

        Returns:
            Mean `loss` over all ranks, nats; `num_images` and `images_per_second`, all ranks
            together; `data_wait`, fraction of this rank's time, in [0, 1]; `seconds`;
            `sample_hash`, 16 hexadecimal digits; `skipped_steps`, if any; `gpu_gib`, the peak
            memory of this rank's GPU, if it has one; `tflops`, TFLOP/s of a device that the model
            needed, the mean over all ranks.
        """
        loss = reduce(self._loss).item() / (self.num_steps * self._world_size)  # waits for device
        seconds = time.perf_counter() - self._began
        since = torch.tensor(
            [as_int64(wrapped(self._hash_since)), self._flops], device=self._device
        )
        hash_since, flops = reduce(since).tolist()
        self.sample_hash = wrapped(self.sample_hash + hash_since)
        self._hash_since = 0
        line: dict[str, Any] = {
            "loss": loss,
            "num_images": self._num_images,
            "images_per_second": self._num_images / seconds,
            "data_wait": self._waited / seconds,
            "seconds": seconds,
            "sample_hash": f"{self.sample_hash:016x}",
            "tflops": flops / seconds / self._world_size / 1e12,
        }
        if self._num_skipped:
            line["skipped_steps"] = self._num_skipped
        if self._device.type == "cuda":
            line["gpu_gib"] = torch.cuda.max_memory_reserved(self._device) / 2**30
        self.reset()
        return line


def format_postfix(line: dict[str, Any], lr: float) -> str:
    """Return the postfix of the progress bar."""
    text = f"loss {line['loss']:.3f}, lr {lr:.3g}, data wait {line['data_wait']:.0%}"
    text += f", {format_utilisation(line)}"
    return text + (f", {line['gpu_gib']:.1f} GiB" if "gpu_gib" in line else "")


class Cost:
    """The cost of a run: wall-clock time of all its processes x price, preempted work included.

    Args:
        run: The run directory, before `MetricsLogger` removes the lines of lost work.
        price_per_hour: Price of all machines, USD; None disables all metrics.
        progress: Where this process starts.
    """

    def __init__(self, run: RunDir, price_per_hour: float | None, progress: Progress) -> None:
        lines = read_metrics(run.path) if (run.path / FILE_NAME).is_file() else []
        self._spent_before = max((line.get("cost_usd", 0.0) for line in lines), default=0.0)
        self._price_per_second = None if price_per_hour is None else price_per_hour / 3600
        self._first, self._total = progress.samples_seen, progress.total_samples
        self._began = time.monotonic()

    def metrics(self, samples_seen: int) -> dict[str, float]:
        """Return the cost, for every line of metrics.jsonl.

        Args:
            samples_seen: Training samples that the run has seen.

        Returns:
            `cost_usd`, of the whole run so far; `cost_left_usd`, of the rest at the speed of this
            process, validation and saving included, once it has trained. Empty without a price.
        """
        if self._price_per_second is None:
            return {}
        spent = (time.monotonic() - self._began) * self._price_per_second
        costs = {"cost_usd": self._spent_before + spent}
        if trained := samples_seen - self._first:
            costs["cost_left_usd"] = spent / trained * (self._total - samples_seen)
        return costs
