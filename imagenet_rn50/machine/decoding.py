"""How many images/s the loader makes, the one that training uses, from shards in memory.

The volume is measured for itself (disk.py), which leaves no shard in memory. So a few are read
whole first, and pictures are made of these alone, again and again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagenet_rn50.loading.loader import Loader, Share, make_loader
from imagenet_rn50.loading.order import TrainingOrder
from imagenet_rn50.loading.transforms import TrainTransform
from imagenet_rn50.machine.disk import read_whole
from imagenet_rn50.machine.facts import available_memory
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.shards.manifest import Split

_BATCH = 64  # a smaller one than training's, so that a slow machine finishes several
_EPOCHS = 10**6  # of the few shards; more than can be read in the time
_MOST_BYTES = 2 * 10**9  # of shards in memory; half a minute of reading from a slow volume
_PART_OF_AVAILABLE = 0.5  # the loader needs some memory, too


@dataclass(frozen=True)
class DecodingRates:
    """How fast training pictures are made.

    Attributes:
        one_worker: images/s of a single loader process.
        all_workers: images/s of all of them together.
        num_workers: How many these are.
        size: Side of the pictures, px.
    """

    one_worker: float
    all_workers: float
    num_workers: int
    size: int


def measure_decoding(
    folder: Path, split: Split, recipe: Recipe, num_workers: int, seconds: float
) -> DecodingRates:
    """Measures decoding and augmentation, with one worker and with all, without the volume.

    Args:
        folder: Where the shards stand.
        split: What stands in them.
        recipe: Says what is done to pictures.
        num_workers: Loader processes of all ranks together.
        seconds: How long each is measured.
    """
    few = first_shards(split, min(_MOST_BYTES, _PART_OF_AVAILABLE * available_memory()))
    read_whole([folder / shard.name for shard in few.shards])
    size = recipe.data.size_at(0)
    # A pass over a few shards is short: crops that grow from epoch to epoch would not stay at it.
    still = {"train_size": size, "final_size": None, "growth": None}
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=still)})
    one = _images_per_second(folder, few, recipe, 1, seconds)
    together = _images_per_second(folder, few, recipe, num_workers, seconds)
    return DecodingRates(one, together, num_workers, size)


def first_shards(split: Split, num_bytes: float) -> Split:
    """Returns the part of a split that stands in its first shards.

    Args:
        split: The whole.
        num_bytes: How much the shards may have together; the first is taken in any case.
    """
    ends = np.cumsum([shard.num_bytes for shard in split.shards])
    num_shards = max(int(np.searchsorted(ends, num_bytes, side="right")), 1)
    stop = int(split.shard_starts[num_shards])
    return Split(
        split.shards[:num_shards],
        split.offsets[:stop],
        split.lengths[:stop],
        split.labels[:stop],
        split.keys[:stop],
    )


def _images_per_second(
    folder: Path, split: Split, recipe: Recipe, num_workers: int, seconds: float
) -> float:
    """Measures a loader once its workers are under way."""
    batch = min(_BATCH, recipe.micro_batch)
    loader = make_loader(
        folder,
        split,
        Share(start=0, stop=_EPOCHS * split.num_samples, batch=batch),
        TrainTransform(recipe.data, recipe.seed),
        order=TrainingOrder(split.shard_sizes, seed=recipe.seed, window=recipe.data.shuffle_window),
        num_workers=num_workers,
    )
    try:
        return _rate(loader, num_workers, seconds)
    finally:
        loader.close()


def _rate(loader: Loader, num_workers: int, seconds: float) -> float:
    """Returns images/s, without the batches that stood ready when the first was asked for."""
    batches = iter(loader)
    for _ in range(2 * num_workers + 1):
        next(batches)
    loader.rates()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(batches)
    return loader.rates().images_per_s
