"""How many images/s the loader makes, the one that training uses, from shards in memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from imagenet_rn50.loading.loader import Loader, Share, make_loader
from imagenet_rn50.loading.order import TrainingOrder
from imagenet_rn50.loading.transforms import TrainTransform
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.shards.manifest import Split

_BATCH = 64  # a smaller one than training's, so that a slow machine finishes several
_EPOCHS = 1000  # more than can be read in the time


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
    """Measures reading, decoding and augmentation, with one worker and with all.

    Args:
        folder: Where the shards stand.
        split: What stands in them.
        recipe: Says what is done to pictures.
        num_workers: Loader processes of all ranks together.
        seconds: How long each is measured.
    """
    one = _images_per_second(folder, split, recipe, 1, seconds)
    together = _images_per_second(folder, split, recipe, num_workers, seconds)
    return DecodingRates(one, together, num_workers, recipe.data.size_at(0))


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
