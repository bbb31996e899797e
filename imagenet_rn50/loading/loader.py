"""The loader: order and reader, then transforms, then batches, as a WebDataset pipeline.

    source (order + reader)  ->  picture (transform)  ->  batches   =  webdataset.DataPipeline
                                                                       in a webdataset.WebLoader

Whoever knows WebDataset can put a stage of their own between these. Every batch is made whole in
one worker, as uint8: decoding, not the container, is what costs, and normalising is the device's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import get_worker_info

from imagenet_rn50.loading.order import TrainingOrder, batch_starts
from imagenet_rn50.loading.reader import ShardReader
from imagenet_rn50.shards.manifest import Split

Transform = Callable[[bytes, int, int], Tensor]
"""JPEG, epoch, sample index -> (3, H, W) uint8."""


class Batch(NamedTuple):
    """Consecutive samples of the order.

    Attributes:
        pictures: (B, 3, H, W) uint8.
        labels: Class indices; (B,) int64.
        indices: Sample indices; (B,) int64.
    """

    pictures: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Share:
    """Which positions this process reads: those of one rank among several.

    Args:
        start: First position of the whole stream.
        stop: One past its last position.
        batch: Samples in a batch.
        rank: This rank, from 0.
        world_size: Number of ranks.
    """

    start: int
    stop: int
    batch: int
    rank: int = 0
    world_size: int = 1

    @property
    def starts(self) -> range:
        """Positions at which this rank's batches begin."""
        return batch_starts(self.start, self.stop, self.batch, self.rank, self.world_size)


@dataclass(frozen=True)
class SampleSource:
    """Source stage: yields this worker's samples in order, as WebDataset samples.

    Worker w of W takes every W-th batch of its rank; the DataLoader asks its workers in turn, so
    the batches come out in the order of the rank for any number of workers.

    Args:
        folder: Where the shards stand.
        split: What stands in them.
        share: Which positions are this rank's.
        order: Which sample stands at a position; None for the order of the shards, once.
    """

    folder: Path
    split: Split
    share: Share
    order: TrainingOrder | None

    def __call__(self) -> Iterator[dict[str, Any]]:
        """Yields {"__key__", "jpg", "cls", "epoch", "index"}, batch after batch."""
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        reader = ShardReader(self.folder, self.split)
        try:
            for start in self.share.starts[number::num_workers]:
                count = min(self.share.batch, self.share.stop - start)
                for epoch, index in self._samples(start, count):
                    yield {
                        "__key__": self.split.key_of(index),
                        "jpg": reader.read(index),
                        "cls": int(self.split.labels[index]),
                        "epoch": epoch,
                        "index": index,
                    }
        finally:
            reader.close()

    def _samples(self, start: int, count: int) -> Iterator[tuple[int, int]]:
        """Yields epoch and sample index of consecutive positions."""
        if self.order is None:
            yield from ((0, index) for index in range(start, start + count))
        else:
            epochs, indices = self.order.at(start, count)
            yield from zip(epochs.tolist(), indices.tolist(), strict=True)


@dataclass(frozen=True)
class TransformPicture:
    """Map stage: replaces "jpg" by "picture"."""

    transform: Transform

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Decodes and transforms one sample.

        Raises:
            ValueError: Naming the sample, when its JPEG cannot be decoded.
        """
        content = sample.pop("jpg")
        try:
            sample["picture"] = self.transform(content, sample["epoch"], sample["index"])
        except ValueError as error:
            raise ValueError(f"sample {sample['__key__']} cannot be decoded: {error}") from error
        return sample


@dataclass(frozen=True)
class StackBatches:
    """Batch stage: writes `batch` pictures at a time into one tensor that workers can share."""

    batch: int

    def __call__(self, samples: Iterator[dict[str, Any]]) -> Iterator[Batch]:
        """Yields batches; the last one may be shorter."""
        pending: list[dict[str, Any]] = []
        for sample in samples:
            pending.append(sample)
            if len(pending) == self.batch:
                yield _stack(pending)
                pending = []
        if pending:
            yield _stack(pending)


def make_loader(
    folder: Path,
    split: Split,
    share: Share,
    transform: Transform,
    *,
    order: TrainingOrder | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> wds.WebLoader:
    """Makes the loader of one rank. It shards itself: do not `Accelerator.prepare` it.

    Args:
        folder: Where the shards stand.
        split: What stands in them.
        share: Which positions this rank reads.
        transform: JPEG, epoch, sample index -> (3, H, W) uint8.
        order: Which sample stands at a position; None for the order of the shards, once.
        num_workers: Processes that read and decode; 0 does it in this one.
        pin_memory: Whether batches are copied to page-locked memory, for a GPU.

    Returns:
        An iterable of `Batch`.
    """
    pipeline = wds.DataPipeline(
        SampleSource(folder, split, share, order),
        wds.map(TransformPicture(transform)),
        StackBatches(share.batch),
    )
    return wds.WebLoader(pipeline, batch_size=None, num_workers=num_workers, pin_memory=pin_memory)


def _stack(samples: list[dict[str, Any]]) -> Batch:
    """Copies pictures into one preallocated tensor, in shared memory when in a worker."""
    first = samples[0]["picture"]
    pictures = torch.empty((len(samples), *first.shape), dtype=torch.uint8)
    if get_worker_info() is not None:
        pictures.share_memory_()
    for target, sample in zip(pictures, samples, strict=True):
        target.copy_(sample["picture"])
    labels = torch.tensor([sample["cls"] for sample in samples])
    indices = torch.tensor([sample["index"] for sample in samples])
    return Batch(pictures, labels, indices)
