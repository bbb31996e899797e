"""From batches of bytes on the host to batches of floats on the device, one ahead on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from imagenet_rn50.loading.stages import Batch
from imagenet_rn50.loading.transforms import normalise


class DeviceBatch(NamedTuple):
    """A batch as the model takes it.

    Attributes:
        pictures: (B, 3, H, W) float32, normalised, channels last, on the device.
        labels: Class indices; (B,) int64, on the device.
        host: The batch that it was made of.
    """

    pictures: Tensor
    labels: Tensor
    host: Batch


def on_device(
    batches: Iterable[Batch],
    device: torch.device,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Iterator[DeviceBatch]:
    """Yields batches on the device, normalised there.

    On a GPU the next batch is copied and normalised on a stream of its own while the model works on
    the one before; for that the batches must be in page-locked memory.

    Args:
        batches: What the loader yields.
        device: Where to.
        mean: Mean of each RGB channel, of values in [0, 1].
        std: Standard deviation of each RGB channel, of values in [0, 1].
    """
    # Elsewhere than on CUDA a copy that is not waited for may read memory that is freed meanwhile:
    # on mps, pixels were wrong (https://github.com/pytorch/pytorch/issues/189690).
    is_cuda = device.type == "cuda"

    def move(batch: Batch) -> DeviceBatch:
        pictures = batch.pictures.to(device, non_blocking=is_cuda)
        if pictures.dtype == torch.uint8:  # floats were normalised by their transform
            pictures = normalise(pictures, mean, std)
        return DeviceBatch(pictures, batch.labels.to(device, non_blocking=is_cuda), batch)

    if is_cuda:
        yield from _one_ahead(iter(batches), device, move)
    else:
        yield from map(move, batches)


def _one_ahead(
    batches: Iterator[Batch], device: torch.device, move: Callable[[Batch], DeviceBatch]
) -> Iterator[DeviceBatch]:
    """Moves each batch on a stream of its own while the one before is worked on."""
    stream = torch.cuda.Stream(device)

    def begin() -> tuple[DeviceBatch, torch.cuda.Event] | None:
        batch = next(batches, None)
        if batch is None:
            return None
        with torch.cuda.stream(stream):
            moved = move(batch)
        return moved, stream.record_event()

    following = begin()
    while following is not None:
        (moved, done), following = following, begin()
        consumer = torch.cuda.current_stream(device)
        consumer.wait_event(done)  # of this batch alone: the next one may still be on its way
        for tensor in (moved.pictures, moved.labels):
            tensor.record_stream(consumer)  # or its memory could be given away while in use
        yield moved
