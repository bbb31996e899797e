"""Memory of loader workers: kept when freed, and handed to the training process without a copy.

The stages of the WebDataset pipeline, and the batch that comes out of it.

    ReadSamples (order + reader)  ->  DecodeAndTransform  ->  Collate

Between them go WebDataset samples, dictionaries, so that whoever knows WebDataset can put a stage
of their own in between. Every batch is made whole in one worker, as uint8: decoding, not the
container, is what costs, and normalising is the device's.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from imagenet_rn50.data.cache import Prefetcher
from imagenet_rn50.data.reader import SampleError, ShardReader, ShardStore
from imagenet_rn50.data.sampler import Order, batch_starts
from imagenet_rn50.data.transforms import Transform
from imagenet_rn50.jpeg.header import is_jpeg
from imagenet_rn50.shards.manifest import Split
from imagenet_rn50.utils.signals import signal_at_death_of_parent

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


@cache
def keep_freed_memory() -> None:
    """Tells the C library to keep freed memory instead of returning it to the system.

    Every picture needs some buffers of a hundred kB. By default each is fresh memory from the
    system, and touching it page by page costs up to a tenth of the time that a picture takes.
    Meant for loader workers, which do nothing else. Without glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    mallopt(_M_TRIM_THRESHOLD, 256 << 20)
    mallopt(_M_TOP_PAD, 16 << 20)


def empty_pictures(count: int, height: int, width: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Returns memory for pictures; (count, 3, height, width) of `dtype`, channels last.

    Channels last is how decoders write and how the model reads, so pixels are never transposed. In
    a loader worker the memory is shared with the process that trains.
    """
    shape = (count, height, width, 3)
    if get_worker_info() is None:
        pictures = torch.empty(shape, dtype=dtype)
    else:
        num_bytes = count * height * width * 3 * dtype.itemsize
        # What torch's own collate function allocates, too.
        storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(num_bytes)
        pictures = torch.empty(0, dtype=dtype).set_(storage).view(shape)
    return pictures.permute(0, 3, 1, 2)


OnCorrupt: TypeAlias = Literal["stop", "substitute"]
Sample: TypeAlias = dict[str, Any]

FILLER = -1  # index and label of rows that only make batches of equal size


class Batch(NamedTuple):
    """Consecutive samples of the order.

    Attributes:
        images: (B, 3, H, W), channels last; uint8, or float32 where the transform normalises.
        labels: Class indices; (B,) int64, -1 for a filler.
        indices: Sample indices; (B,) int64, -1 for a filler.
        mask: Which rows count, being no fillers; (B,) bool.
        notes: What was substituted, a sentence each.
        damaged: Indices of the samples that were substituted.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    mask: Tensor
    notes: tuple[str, ...] = ()
    damaged: tuple[int, ...] = ()


@dataclass(frozen=True)
class DistributedBatchSampler:
    """Which positions this process reads: those of one rank among several.

    Args:
        start: First position of the whole stream.
        stop: One past its last position.
        batch: Samples in a batch.
        rank: This rank, from 0.
        world_size: Number of ranks.
        equal: Whether every rank yields equally many batches of the full size, which fillers
            complete; `Batch.mask` tells them apart. Without it the ranks' numbers of batches may
            differ by one, and the last batch may be shorter.
    """

    start: int
    stop: int
    batch: int
    rank: int = 0
    world_size: int = 1
    equal: bool = False

    @property
    def starts(self) -> range:
        """Positions at which this rank's batches begin."""
        stop = self.stop
        if self.equal:
            round_of_all = self.world_size * self.batch
            stop = self.start + -(-(stop - self.start) // round_of_all) * round_of_all
        return batch_starts(self.start, stop, self.batch, self.rank, self.world_size)

    def count_at(self, start: int) -> int:
        """Returns how many samples the batch that begins at `start` has, fillers not counted."""
        return max(0, min(self.batch, self.stop - start))

    def rows_at(self, start: int) -> int:
        """Returns how many rows it has, fillers counted."""
        return self.batch if self.equal else self.count_at(start)


@dataclass(frozen=True)
class ReadSamples:
    """Source stage: yields this worker's samples in order, as WebDataset samples.

    Worker w of W takes every W-th batch of its rank; the DataLoader asks its workers in turn, so
    the batches come out in the order of the rank for any number of workers.

    Args:
        store: Where the shards stand.
        split: What stands in them.
        share: Which positions are this rank's.
        order: Which sample stands at a position.
        on_corrupt: Whether a sample that cannot be read stops the run.
    """

    store: ShardStore
    split: Split
    share: DistributedBatchSampler
    order: Order
    on_corrupt: OnCorrupt = "stop"

    def __call__(self) -> Iterator[Sample]:
        """Yields samples, batch after batch.

        Each is {"__key__", "jpg", "cls", "epoch", "index", "row", "rows"}; under `substitute` also
        "others", the samples that may stand in for it. A filler's "jpg" is None.
        """
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker is not None:
            keep_freed_memory()
            signal_at_death_of_parent(signal.SIGKILL)
        prefetcher = Prefetcher(self.store, self.split, self.order, number, num_workers)
        with ShardReader(self.store, self.split) as reader:
            try:
                for start in self.share.starts[number::num_workers]:
                    prefetcher.advance(start)
                    yield from self._batch(reader, start)
            finally:
                prefetcher.close()

    def _batch(self, reader: ShardReader, start: int) -> Iterator[Sample]:
        """Yields the samples of one batch."""
        count, rows = self.share.count_at(start), self.share.rows_at(start)
        epochs, indices = self.order.indices(start, count)
        pairs = zip(epochs.tolist(), indices.tolist(), strict=True)
        for row, (epoch, index) in enumerate(pairs):
            yield self._sample(reader, epoch, index) | {"row": row, "rows": rows}
        for row in range(count, rows):
            filler = {"__key__": "", "jpg": None, "cls": FILLER, "epoch": 0, "index": FILLER}
            yield filler | {"row": row, "rows": rows}

    def _sample(self, reader: ShardReader, epoch: int, index: int) -> Sample:
        """Returns one sample with its bytes, or with the error of reading it."""
        sample: Sample = {
            "__key__": self.split.key_of(index),
            "cls": int(self.split.labels[index]),
            "epoch": epoch,
            "index": index,
            "place": reader.describe_sample(index),
            "is_checked": self.split.crc32s is not None,
        }
        if self.on_corrupt == "stop":
            return sample | {"jpg": reader.read(index)}
        sample["others"] = self._others(reader, index)
        try:
            return sample | {"jpg": reader.read(index)}
        except SampleError as error:
            return sample | {"jpg": b"", "error": error}

    def _others(self, reader: ShardReader, index: int) -> Iterator[Sample]:
        """Yields readable samples of the same shard."""
        for other in reader.fallback_indices(index):
            try:
                content = reader.read(other)
            except SampleError:
                continue
            key, label = self.split.key_of(other), int(self.split.labels[other])
            yield {"__key__": key, "cls": label, "index": other, "jpg": content}


@dataclass(frozen=True)
class DecodeAndTransform:
    """Map stage: replaces "jpg" by "picture", which is written straight into its batch.

    Where a sample cannot be decoded and has "others", the first of them that can be decoded takes
    its place, with its own index and label; "damaged" keeps the sample's index, and "note" says
    what happened. So what stands in is the same in every run, on any number of ranks and workers.
    """

    transform: Transform

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """Yields the samples with "picture", (3, H, W) uint8, a row of "pictures".

        Raises:
            SampleError: Naming the sample, when its JPEG cannot be decoded and nothing stands in.
        """
        pictures = torch.empty(0)
        for sample in samples:
            if sample["row"] == 0:
                # One size a batch, also where it straddles two epochs: that of its first sample.
                size = self.transform.size_at(sample["epoch"])
                pictures = empty_pictures(sample["rows"], size, size, self.transform.dtype)
            sample["pictures"] = pictures
            sample["picture"] = pictures[sample["row"]]
            if sample["jpg"] is None:
                sample["picture"].zero_()
            else:
                self._fill(sample)
            yield sample

    def _fill(self, sample: Sample) -> None:
        """Decodes a sample into its row, or one that stands in for it."""
        try:
            if "error" in sample:
                raise sample["error"]
            self._decode(sample)
        except ValueError as error:
            problem = _problem(sample, error)
            if "others" not in sample:
                raise problem from error
            self._substitute(sample, problem)
        finally:
            del sample["jpg"]

    def _substitute(self, sample: Sample, problem: SampleError) -> None:
        """Lets the first sample that can be decoded stand in."""
        for other in sample["others"]:
            try:
                self._decode(sample | other)
            except ValueError:
                continue
            sample["damaged"] = sample["index"]
            sample.update(other)
            sample["note"] = f"{problem}\n  instead:  sample {other['__key__']}"
            return
        raise problem

    def _decode(self, sample: Sample) -> None:
        """Transforms a sample into its row."""
        self.transform(sample["jpg"], sample["epoch"], sample["index"], sample["picture"])


@dataclass(frozen=True)
class Collate:
    """Batch stage: puts the rows of a batch together; they are in one tensor already.

    Only where a stage of the user's replaced "picture", that is copied.
    """

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Batch]:
        """Yields batches; the last one may be shorter."""
        pending: list[Sample] = []
        for sample in samples:
            pending.append(sample)
            if sample["row"] + 1 == sample["rows"]:
                yield _stack(pending)
                pending = []


def _stack(samples: list[Sample]) -> Batch:
    """Makes one batch of its samples."""
    pictures: Tensor = samples[0]["pictures"]
    shape = samples[0]["picture"].shape
    if shape != pictures.shape[1:]:
        pictures = empty_pictures(len(samples), *shape[1:])
    for row, sample in zip(pictures, samples, strict=True):
        picture = sample["picture"]
        if (picture.data_ptr(), picture.stride()) != (row.data_ptr(), row.stride()):
            row.copy_(picture.clone())  # a copy, for it may be a view of the row itself
    indices = torch.tensor([sample["index"] for sample in samples])
    return Batch(
        pictures,
        labels=torch.tensor([sample["cls"] for sample in samples]),
        indices=indices,
        mask=indices != FILLER,
        notes=tuple(sample["note"] for sample in samples if "note" in sample),
        damaged=tuple(sample["damaged"] for sample in samples if "damaged" in sample),
    )


def _problem(sample: Sample, error: ValueError) -> SampleError:
    """Says which sample is damaged, and how."""
    if isinstance(error, SampleError):
        return error
    fix = "run `python shard_imagenet.py verify` on the shards"
    # As in shards made by others: nothing has changed since their manifest was written.
    if sample.get("is_checked") or not is_jpeg(sample["jpg"]):
        fix = "pack the images again, which converts them to JPEG"
    return SampleError(f"{sample['place']} cannot be decoded", found=str(error), fix=fix)
