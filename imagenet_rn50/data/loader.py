"""From shards to batches on the device: a WebDataset pipeline that shards and measures itself.

make_loader(shards, "train", ...)   one call for people who use the loader alone
build_loader(store, split, ...)     the same from parts, for training and evaluation
Loader                              yields the batches of one rank
on_device(loader, ...)              copies them to the device and normalises them there
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
import webdataset as wds
from torch import Tensor

from imagenet_rn50.data.batch_memory import Mappings
from imagenet_rn50.data.dataset import (
    Batch,
    Collate,
    DecodeAndTransform,
    OnCorrupt,
    ReadSamples,
    init_worker,
)
from imagenet_rn50.data.prefetch import least_cache_bytes
from imagenet_rn50.data.sampler import (
    DistributedBatchSampler,
    Order,
    SequentialSampler,
    ShardShuffleSampler,
)
from imagenet_rn50.data.transforms import EvalTransform, TrainTransform, Transform, normalise
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.shards.manifest import Manifest, Split
from imagenet_rn50.shards.store import (
    DEFAULT_LIMIT_BYTES,
    CachedShards,
    ShardStore,
    open_shards,
)
from imagenet_rn50.utils.errors import InputError, RankError
from imagenet_rn50.utils.private_apis import shut_down_workers
from imagenet_rn50.utils.signals import block_signals_in_children

MAX_SUBSTITUTIONS = 100

log = logging.getLogger(__name__)


def make_loader(
    shards: str | Path,
    split: str = "train",
    *,
    batch_size: int,
    data: DataRecipe | None = None,
    transform: Transform | None = None,
    rank: int = 0,
    world_size: int = 1,
    position: int = 0,
    epochs: int = 1,
    seed: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
    on_corrupt: OnCorrupt = "stop",
    cache: Path | None = None,
    cache_bytes: int = DEFAULT_LIMIT_BYTES,
    stages: Sequence[Any] = (),
) -> Loader:
    """Return the loader of one rank over a folder of shards.

    The split `train` is shuffled and augmented; any other one is read in the order of the shards
    and center-cropped. The loader shards itself: do not `Accelerator.prepare` it.

    Args:
        shards: Folder of the manifest: a path, or an address such as s3://bucket/imagenet. The
            shards may be elsewhere: see `Manifest.location`.
        split: Name of a split in the manifest.
        batch_size: Samples per batch of one rank.
        data: A recipe's data settings: sizes, augmentations, shuffle window; None for the defaults.
        transform: Makes an image from a JPEG; None for `TrainTransform` or `EvalTransform`.
        rank: This rank, from 0.
        world_size: Number of ranks.
        position: Samples of all ranks that are skipped without being read, to resume.
        epochs: Epochs of the stream, counted from position 0.
        seed: Seed of the order and of the augmentations.
        num_workers: Processes that read and decode; 0 does it in this process.
        pin_memory: Whether to copy batches to page-locked memory, for a GPU.
        on_corrupt: What to do with a damaged sample: `stop`, or `substitute` another one.
        cache: Folder on this machine for remote shards.
        cache_bytes: How much space they may take there.
        stages: WebDataset stages of your own; see `build_loader`.

    Returns:
        An iterable of `Batch`.

    Raises:
        InputError: If the shards cannot be read, or have no such split.
    """
    store = open_shards(shards, cache=cache, limit_bytes=cache_bytes)
    samples = Manifest.load(store.folder).split(split)
    data = data or DataRecipe()
    order: Order = SequentialSampler(samples.shard_sizes)
    default: Transform = EvalTransform(data.eval_resize, data.eval_size)
    if split == "train":
        order = ShardShuffleSampler(samples.shard_sizes, seed=seed, window=data.shuffle_window)
        default = TrainTransform(data, seed)
    elif epochs > 1:
        raise ValueError(f"epochs must be 1 for split {split!r}, which has no order of epochs")
    return build_loader(
        store,
        samples,
        DistributedBatchSampler(
            position, epochs * samples.num_samples, batch_size, rank, world_size
        ),
        transform or default,
        order=order,
        num_workers=num_workers,
        pin_memory=pin_memory,
        on_corrupt=on_corrupt,
        stages=stages,
    )


def build_loader(
    shards: Path | ShardStore,
    split: Split,
    sampler: DistributedBatchSampler,
    transform: Transform,
    *,
    order: Order | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
    on_corrupt: OnCorrupt = "stop",
    max_substitutions: int = MAX_SUBSTITUTIONS,
    stages: Sequence[Any] = (),
) -> Loader:
    """Return the loader of one rank from its parts; see `make_loader`.

    Args:
        shards: Folder of the manifest on this machine, or a store.
        split: The manifest of the split.
        sampler: Which positions this rank reads.
        transform: Makes an image from a JPEG.
        order: Which sample is at a position; None for the order of the shards, once.
        num_workers: Processes that read and decode; 0 does it in this process.
        pin_memory: Whether to copy batches to page-locked memory, for a GPU.
        on_corrupt: What to do with a damaged sample: `stop`, or `substitute` another one.
        max_substitutions: How many samples of this rank may be damaged and substituted before it
            stops; one that is read in several epochs counts once.
        stages: WebDataset stages of your own, between the transform and the batch. They see
            samples with "image", (3, H, W) uint8.

    Returns:
        An iterable of `Batch`.
    """
    store = open_shards(shards) if isinstance(shards, Path) else shards
    order = order or SequentialSampler(split.shard_sizes)
    _warn_of_small_cache(store, split, order, num_workers)
    if split.crc32s is None and sampler.rank == 0:
        _warn_of_unchecked_samples()
    pipeline = wds.DataPipeline(
        ReadSamples(store, split, sampler, order, on_corrupt),
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


class Loader:
    """Yield the batches of one rank, and measure the speed.

    Args:
        pipeline: The WebDataset pipeline that yields batches.
        num_workers: Processes that read and decode; 0 does it in this process. They live as long as
            the loader, so a second pass starts at once.
        pin_memory: Whether to copy batches to page-locked memory, for a GPU.
        max_substitutions: How many samples may be damaged and substituted before the loader stops;
            one that is read in several epochs counts once.
    """

    def __init__(
        self,
        pipeline: wds.DataPipeline,
        *,
        num_workers: int,
        pin_memory: bool,
        max_substitutions: int = MAX_SUBSTITUTIONS,
    ) -> None:
        self._mappings = Mappings()
        self.web_loader = wds.WebLoader(
            pipeline,
            batch_size=None,
            collate_fn=_identity,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=partial(init_worker, reader=self._mappings.name),
        )
        if num_workers and multiprocessing.get_start_method() == "forkserver":
            # The server that forks workers imports this once, instead of each worker for itself.
            multiprocessing.set_forkserver_preload([__name__])
        self._max_substitutions = max_substitutions
        self._damaged: set[int] = set()
        self._start_measuring()

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches.

        Raises:
            RankError: If a sample is damaged, more samples were substituted than allowed, or a
                shard is missing. Other ranks may be fine: they read other samples and shards.
        """
        self._start_measuring()
        batches = iter(self.web_loader)
        forking: AbstractContextManager[None] = (
            block_signals_in_children()
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
                raise _without_traceback(error) from None
            self._waited += perf_counter() - asked
            self._images += len(batch.indices)
            self._count_substitutions(batch)
            yield batch

    def close(self) -> None:
        """Shut down the workers; a later pass starts new ones.

        Otherwise they end when the loader is garbage collected, or some seconds later.
        """
        shut_down_workers(self.web_loader.pipeline[0])
        self._mappings.clear()

    def stats(self) -> LoaderStats:
        """Return the speed since the last call, or since the pass began."""
        seconds = perf_counter() - self._since
        stats = LoaderStats(self._images, seconds, self._waited, self._substituted)
        self._start_measuring()
        return stats

    def _start_measuring(self) -> None:
        self._since = perf_counter()
        self._images = self._substituted = 0
        self._waited = 0.0

    def _count_substitutions(self, batch: Batch) -> None:
        """Log substitutions, and stop if there are too many."""
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


@dataclass(frozen=True)
class LoaderStats:
    """Speed of a loader since the last call of `Loader.stats`.

    Args:
        images: Images that were yielded.
        seconds: Wall-clock time.
        waited_seconds: Time in which the consumer waited for a batch.
        substitutions: Damaged samples that were substituted.
    """

    images: int
    seconds: float
    waited_seconds: float
    substitutions: int

    @property
    def images_per_s(self) -> float:
        """Images per second."""
        return self.images / self.seconds if self.seconds else 0.0


class DeviceBatch(NamedTuple):
    """A batch as the model reads it.

    Attributes:
        images: (B, 3, H, W) float32, normalised, channels last, on the device.
        labels: Class indices; (B,) int64, on the device.
        host: The batch that it was made from.
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
    """Yield batches on the device, normalised there.

    On a GPU the next batch is copied and normalised on a stream of its own while the model uses
    the current one; for that, batches must be in page-locked memory.

    Args:
        batches: Batches of a loader.
        device: The device.
        mean: Mean of each RGB channel, of values in [0, 1].
        std: Standard deviation of each RGB channel, of values in [0, 1].
    """
    # Only on CUDA: elsewhere an asynchronous copy may read memory that was already freed; on mps,
    # pixels were wrong (https://github.com/pytorch/pytorch/issues/189690).
    is_cuda = device.type == "cuda"

    def move(batch: Batch) -> DeviceBatch:
        images = batch.images.to(device, non_blocking=is_cuda)
        if images.dtype == torch.uint8:  # floats were normalised by their transform
            images = normalise(images, mean, std)
        return DeviceBatch(images, batch.labels.to(device, non_blocking=is_cuda), batch)

    if is_cuda:
        yield from _one_ahead(iter(batches), device, move)
    else:
        yield from map(move, batches)


def _one_ahead(
    batches: Iterator[Batch], device: torch.device, move: Callable[[Batch], DeviceBatch]
) -> Iterator[DeviceBatch]:
    """Move each batch on a stream of its own while the previous one is used."""
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


def _warn_of_small_cache(store: ShardStore, split: Split, order: Order, num_workers: int) -> None:
    """Warn if shards will be downloaded more than once per epoch."""
    if not isinstance(store, CachedShards):
        return
    needed = least_cache_bytes(split, order, num_workers)
    if store.limit_bytes < needed:
        log.warning(
            "the cache %s is limited to %d bytes, but the shards in use take up to %d: some will "
            "be downloaded more than once",
            store.cache,
            store.limit_bytes,
            needed,
        )


@cache  # once for all splits and passes
def _warn_of_unchecked_samples() -> None:
    """Warn that damage is noticed only if a JPEG cannot be decoded."""
    log.warning(
        "the manifest has no CRC-32 of its samples, so their bytes are not checked; "
        "`python shard_imagenet.py index` writes one that has"
    )


def _identity(batch: Batch) -> Batch:
    return batch


def _without_traceback(error: InputError) -> RankError:
    """Return a worker's error without the worker's traceback, which torch adds to the text."""
    _, _, text = str(error).rpartition(f"{type(error).__name__}: ")
    kind = type(error) if isinstance(error, RankError) else RankError
    return kind(text)
