"""From batches of bytes on the host to batches of floats on the device, one ahead on a GPU.

The loader: a WebDataset pipeline behind a WebLoader, which measures itself.

It shards itself by `DistributedBatchSampler` and starts at any position at once: samples before it
are not read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
import webdataset as wds
from torch import Tensor

from imagenet_rn50.data.cache import CachedShards, least_cache_bytes
from imagenet_rn50.data.dataset import (
    Batch,
    Collate,
    DecodeAndTransform,
    DistributedBatchSampler,
    OnCorrupt,
    ReadSamples,
)
from imagenet_rn50.data.reader import LocalShards, ShardStore
from imagenet_rn50.data.sampler import Order, SequentialSampler
from imagenet_rn50.data.transforms import Transform, normalise
from imagenet_rn50.shards.manifest import Split
from imagenet_rn50.utils.errors import InputError, RankError
from imagenet_rn50.utils.signals import children_without_signals


class DeviceBatch(NamedTuple):
    """A batch as the model takes it.

    Attributes:
        images: (B, 3, H, W) float32, normalised, channels last, on the device.
        labels: Class indices; (B,) int64, on the device.
        host: The batch that it was made of.
    """

    images: Tensor
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
        pictures = batch.images.to(device, non_blocking=is_cuda)
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
        for tensor in (moved.images, moved.labels):
            tensor.record_stream(consumer)  # or its memory could be given away while in use
        yield moved


MAX_SUBSTITUTIONS = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoaderStats:
    """How fast a loader was since it was last asked.

    Args:
        images: Images handed out.
        seconds: Time that passed.
        waited_seconds: Time in which the consumer waited for a batch.
        substitutions: Damaged samples that others stood in for.
    """

    images: int
    seconds: float
    waited_seconds: float
    substitutions: int

    @property
    def images_per_s(self) -> float:
        """Images per second."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def waiting_share(self) -> float:
        """DistributedBatchSampler of the time in which the consumer waited, in [0, 1]."""
        return self.waited_seconds / self.seconds if self.seconds else 0.0


class Loader:
    """Yields the batches of one rank, and measures itself.

    Args:
        pipeline: What makes the batches.
        num_workers: Processes that read and decode; 0 does it in this one. They live as long as
            the loader, so a second pass starts at once.
        pin_memory: Whether batches are copied to page-locked memory, for a GPU.
        max_substitutions: How many samples may be damaged and substituted before the run stops; one
            that is met in each epoch counts once.
    """

    def __init__(
        self,
        pipeline: wds.DataPipeline,
        *,
        num_workers: int,
        pin_memory: bool,
        max_substitutions: int = MAX_SUBSTITUTIONS,
    ) -> None:
        self.web_loader = wds.WebLoader(
            pipeline,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
        )
        self._max_substitutions = max_substitutions
        self._damaged: set[int] = set()
        self._start_measuring()

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches.

        Raises:
            RankError: When a sample is damaged, more were than may be substituted, or a shard
                cannot be had: other ranks read other samples and shards.
        """
        self._start_measuring()
        batches = iter(self.web_loader)
        forking: AbstractContextManager[None] = (
            children_without_signals()
        )  # the first batch starts the workers
        while True:
            asked = perf_counter()
            try:
                with forking:
                    batch: Batch = next(batches)
                forking = nullcontext()
            except StopIteration:
                return
            except InputError as error:
                self.close()
                raise _of_worker(error) from None
            self._waited += perf_counter() - asked
            self._images += len(batch.indices)
            self._count_substitutions(batch)
            yield batch

    def close(self) -> None:
        """Stops the workers; a later pass starts new ones.

        Without it they end with the loader, if its memory is freed at once, or some seconds later.
        """
        data_loader = self.web_loader.pipeline[0]
        if data_loader._iterator is not None:
            workers = getattr(data_loader._iterator, "_workers", ())
            data_loader._iterator._shutdown_workers()
            data_loader._iterator = None
            for worker in workers:
                if worker.is_alive():  # busy beyond torch's patience, and deaf to its SIGTERM
                    worker.kill()

    def stats(self) -> LoaderStats:
        """Returns how fast the loader was since the last call, or since the pass began."""
        seconds = perf_counter() - self._since
        rates = LoaderStats(self._images, seconds, self._waited, self._substituted)
        self._start_measuring()
        return rates

    def _start_measuring(self) -> None:
        """Forgets what was measured."""
        self._since = perf_counter()
        self._images = self._substituted = 0
        self._waited = 0.0

    def _count_substitutions(self, batch: Batch) -> None:
        """Logs what was substituted, and stops where it was too much."""
        for note in batch.notes:
            log.warning("%s", note)
        self._substituted += len(batch.notes)
        self._damaged.update(batch.damaged)
        if len(self._damaged) > self._max_substitutions:
            raise RankError(
                f"{len(self._damaged)} samples were damaged and substituted",
                expected=f"at most {self._max_substitutions}",
                found=f"the last: {batch.notes[-1]}",
            )


def make_loader(
    folder: Path | ShardStore,
    split: Split,
    share: DistributedBatchSampler,
    transform: Transform,
    *,
    order: Order | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
    on_corrupt: OnCorrupt = "stop",
    max_substitutions: int = MAX_SUBSTITUTIONS,
    stages: Sequence[Any] = (),
) -> Loader:
    """Makes the loader of one rank. It shards itself: do not `Accelerator.prepare` it.

    Args:
        folder: Where the shards stand.
        split: What stands in them.
        share: Which positions this rank reads.
        transform: Makes pictures of JPEGs.
        order: Which sample stands at a position; None for the order of the shards, once.
        num_workers: Processes that read and decode; 0 does it in this one.
        pin_memory: Whether batches are copied to page-locked memory, for a GPU.
        on_corrupt: What a damaged sample does: `stop`, or let another one `substitute` for it.
        max_substitutions: How many samples of this rank may be damaged and substituted before it
            stops; one that is met in each epoch counts once.
        stages: WebDataset stages of your own, between the transform and the batch; they see
            samples with "picture", (3, H, W) uint8.

    Returns:
        An iterable of `Batch`.
    """
    store = LocalShards(folder) if isinstance(folder, Path) else folder
    order = order or SequentialSampler(split.shard_sizes)
    _warn_of_small_cache(store, split, order, num_workers)
    if split.crc32s is None and share.rank == 0:
        _warn_of_unchecked_samples()
    pipeline = wds.DataPipeline(
        ReadSamples(store, split, share, order, on_corrupt),
        DecodeAndTransform(transform),
        *stages,
        Collate(),
    )
    return Loader(
        pipeline,
        num_workers=num_workers,
        pin_memory=pin_memory,
        max_substitutions=max_substitutions,
    )


def _warn_of_small_cache(store: ShardStore, split: Split, order: Order, num_workers: int) -> None:
    """Says when shards will be downloaded again and again."""
    if not isinstance(store, CachedShards):
        return
    needed = least_cache_bytes(split, order, num_workers)
    if store.limit_bytes < needed:
        log.warning(
            "the cache %s may hold %d bytes, but the shards in use take up to %d: some will be "
            "downloaded more than once",
            store.cache,
            store.limit_bytes,
            needed,
        )


@cache  # once for all splits and passes
def _warn_of_unchecked_samples() -> None:
    """Says that damage goes unnoticed, unless it keeps a JPEG from being decoded."""
    log.warning(
        "the manifest holds no CRC-32 of its samples, so their bytes are not checked; "
        "`python shard_imagenet.py index` makes one that does"
    )


def _as_it_is(batch: Batch) -> Batch:
    """Returns a batch that is complete already."""
    return batch


def _of_worker(error: InputError) -> RankError:
    """Returns a worker's error without the worker's traceback, which torch puts into the text."""
    _, _, text = str(error).rpartition(f"{type(error).__name__}: ")
    kind = type(error) if isinstance(error, RankError) else RankError
    return kind(text)
