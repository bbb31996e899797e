"""The stages of the WebDataset pipeline, and the batch that comes out of it.

    ReadSamples (order + reader)  ->  DecodeAndTransform  ->  Collate

Between them go WebDataset samples, dictionaries, so that you can insert WebDataset stages of your
own. One worker makes the whole batch, as uint8, in memory that it shares with the training process.
"""

from __future__ import annotations

import ctypes
import gc
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from imagenet_rn50.data.batch_memory import WorkerMemory, receive
from imagenet_rn50.data.prefetch import Prefetcher
from imagenet_rn50.data.reader import SampleError, ShardReader
from imagenet_rn50.data.sampler import DistributedBatchSampler, Order
from imagenet_rn50.data.transforms import Transform
from imagenet_rn50.jpeg.header import is_jpeg
from imagenet_rn50.shards.manifest import Split
from imagenet_rn50.shards.store import ShardStore
from imagenet_rn50.utils.signals import set_parent_death_signal

OnCorrupt: TypeAlias = Literal["stop", "substitute"]
Sample: TypeAlias = dict[str, Any]

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


class Batch(NamedTuple):
    """Consecutive samples of the order.

    Attributes:
        images: (B, 3, H, W), channels last; uint8, or float32 where the transform normalises.
        labels: Class indices; (B,) int64.
        indices: Sample indices; (B,) int64.
        notes: What was substituted, one sentence each.
        damaged: Indices of the samples that were substituted.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    notes: tuple[str, ...] = ()
    damaged: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReadSamples:
    """Source stage: yield this worker's samples in order, as WebDataset samples.

    Worker w of W reads every W-th batch of its rank. The DataLoader asks its workers in turn, so
    the batches arrive in the rank's order for any number of workers.

    Args:
        store: Opens the shards.
        split: The manifest of the split.
        sampler: Which positions this rank reads.
        order: Which sample is at a position.
        on_corrupt: What to do with a sample that cannot be read: `stop` the run, or `substitute`
            another one.
    """

    store: ShardStore
    split: Split
    sampler: DistributedBatchSampler
    order: Order
    on_corrupt: OnCorrupt = "stop"

    def __call__(self) -> Iterator[Sample]:
        """Yield samples, batch after batch.

        Each is {"__key__", "jpg", "cls", "epoch", "index", "describe", "is_checked", "row",
        "rows"}; under `substitute` also "fallbacks", the samples that may replace it.
        """
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker is not None:
            keep_freed_memory()
            set_parent_death_signal(signal.SIGKILL)
        prefetcher = Prefetcher(self.store, self.split, self.order, number, num_workers)
        with ShardReader(self.store, self.split) as reader:
            try:
                for start in self.sampler.starts[number::num_workers]:
                    prefetcher.advance(start)
                    yield from self._batch(reader, start)
            finally:
                prefetcher.close()

    def _batch(self, reader: ShardReader, start: int) -> Iterator[Sample]:
        rows = self.sampler.size_at(start)
        epochs, indices = self.order.indices(start, rows)
        pairs = zip(epochs.tolist(), indices.tolist(), strict=True)
        for row, (epoch, index) in enumerate(pairs):
            sample = self._sample(reader, epoch, index)
            sample["row"], sample["rows"] = row, rows
            yield sample

    def _sample(self, reader: ShardReader, epoch: int, index: int) -> Sample:
        """Return one sample with its bytes, or with the error of reading it."""
        sample: Sample = {
            "__key__": self.split.key_of(index),
            "cls": int(self.split.labels[index]),
            "epoch": epoch,
            "index": index,
            "describe": partial(reader.describe_sample, index),
            "is_checked": self.split.crc32s is not None,
        }
        if self.on_corrupt == "stop":
            sample["jpg"] = reader.read(index)
            return sample
        sample["fallbacks"] = self._fallbacks(reader, index)
        try:
            sample["jpg"] = reader.read(index)
        except SampleError as error:
            sample["jpg"], sample["error"] = b"", error
        return sample

    def _fallbacks(self, reader: ShardReader, index: int) -> Iterator[Sample]:
        """Yield readable samples of the same shard."""
        for other in reader.fallback_indices(index):
            try:
                content = reader.read(other)
            except SampleError:
                continue
            key, label = self.split.key_of(other), int(self.split.labels[other])
            yield {"__key__": key, "cls": label, "index": other, "jpg": content}


@dataclass(frozen=True)
class DecodeAndTransform:
    """Map stage: replace "jpg" by "image", which is written straight into its batch.

    If a sample cannot be decoded and has "fallbacks", the first one that can be decoded replaces
    it, with its own index and label; "damaged" keeps the sample's index, and "note" describes the
    substitution. So the substitute is the same in every run, for any number of ranks and workers.
    """

    transform: Transform

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """Yield the samples with "image", (3, H, W) uint8, a row of "images".

        Raises:
            SampleError: If its JPEG cannot be decoded and nothing replaces it. Names the sample.
        """
        images = torch.empty(0)
        for sample in samples:
            if sample["row"] == 0:
                # One size per batch, even if it straddles two epochs: that of its first sample.
                size = self.transform.size_at(sample["epoch"])
                del images  # its memory may be free now
                images = empty_images(sample["rows"], size, size, self.transform.dtype)
            sample["images"] = images
            sample["image"] = images[sample["row"]]
            self._fill(sample)
            yield sample
            del sample

    def _fill(self, sample: Sample) -> None:
        """Decode a sample, or its substitute, into its row."""
        try:
            if "error" in sample:
                raise sample["error"]
            self._decode(sample)
        except ValueError as error:
            problem = _problem(sample, error)
            if "fallbacks" not in sample:
                raise problem from error
            self._substitute(sample, problem)
        finally:
            del sample["jpg"]

    def _substitute(self, sample: Sample, problem: SampleError) -> None:
        """Replace a sample by the first fallback that can be decoded."""
        for other in sample["fallbacks"]:
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
        self.transform(sample["jpg"], sample["epoch"], sample["index"], sample["image"])


@dataclass(frozen=True)
class Collate:
    """Batch stage: collect the rows of a batch, which are in one tensor already.

    Copies only if a stage of your own replaced "image".
    """

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Batch]:
        """Yield batches; the last one may be shorter."""
        pending: list[Sample] = []
        for sample in samples:
            pending.append(sample)
            is_last = sample["row"] + 1 == sample["rows"]
            del sample  # or it would keep the batch's memory until the next one has come
            if is_last:
                batch = _stack(pending)
                pending = []
                yield batch
                del batch


def _stack(samples: list[Sample]) -> Batch:
    images: Tensor = samples[0]["images"]
    shape = samples[0]["image"].shape
    if shape != images.shape[1:]:
        images = empty_images(len(samples), *shape[1:])
    for row, sample in zip(images, samples, strict=True):
        image = sample["image"]
        if (image.data_ptr(), image.stride()) != (row.data_ptr(), row.stride()):
            row.copy_(image.clone())  # a copy, for it may be a view of the row itself
    return Batch(
        images,
        labels=torch.tensor([sample["cls"] for sample in samples]),
        indices=torch.tensor([sample["index"] for sample in samples]),
        notes=tuple(sample["note"] for sample in samples if "note" in sample),
        damaged=tuple(sample["damaged"] for sample in samples if "damaged" in sample),
    )


def _problem(sample: Sample, error: ValueError) -> SampleError:
    """Return an error that names the sample, the damage and the fix."""
    if isinstance(error, SampleError):
        return error
    fix = "run `python shard_imagenet.py verify` on the shards"
    # The bytes are as packed, so `verify` finds nothing; shards made by others hold such files.
    if sample.get("is_checked") or not is_jpeg(sample["jpg"]):
        fix = "pack the images again, which converts them to JPEG"
    return SampleError(f"{sample['describe']()} cannot be decoded", found=str(error), fix=fix)


_worker_memory: WorkerMemory | None = None


def init_worker(worker: int, *, reader: str) -> None:
    """Prepare this loader worker.

    Its batches will lie in memory that the training process shares. What it inherited is not
    collected as garbage: looking at it costs time, and a copy of each page that is shared.

    Args:
        worker: Its number.
        reader: Name of the `Mappings` of the training process that receives them.
    """
    global _worker_memory
    _worker_memory = WorkerMemory(reader)
    gc.freeze()


def empty_images(count: int, height: int, width: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Return memory for images; (count, 3, height, width) of `dtype`, channels last.

    Channels last is how decoders write and how the model reads, so pixels are never transposed. In
    a worker of `Loader` the memory is shared with the training process, which saves a copy.
    """
    shape = (count, height, width, 3)
    if _worker_memory is None:
        images = torch.empty(shape, dtype=dtype)
    else:
        images = _worker_memory.empty(shape, dtype)
    return images.permute(0, 3, 1, 2)


def _reduce(batch: Batch) -> tuple[Any, ...]:
    """Return how a batch is sent to another process: its images in shared memory, if they are."""
    images = _worker_memory.send(batch.images) if _worker_memory is not None else None
    if images is None:
        return Batch, tuple(batch)
    _, labels, indices, *rest = batch
    return _received, (images, labels.numpy(), indices.numpy(), *rest)


def _received(images: tuple[Any, ...], labels: Any, indices: Any, *rest: Any) -> Batch:
    """Return a batch that a worker sent."""
    return Batch(receive(*images), torch.from_numpy(labels), torch.from_numpy(indices), *rest)


ForkingPickler.register(Batch, _reduce)


@cache
def keep_freed_memory() -> None:
    """Make the C library keep freed memory instead of returning it to the system.

    Every image needs some buffers of a hundred kB. By default each is fresh memory from the system,
    and touching it page by page costs up to a tenth of the time per image. For loader workers,
    which do nothing else. Without glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    mallopt(_M_TRIM_THRESHOLD, 256 << 20)
    mallopt(_M_TOP_PAD, 16 << 20)
