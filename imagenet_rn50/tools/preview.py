"""Write a grid of images as the model sees them, after augmentation, with their class names."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from imagenet_rn50.data.dataset import Batch
from imagenet_rn50.data.loader import build_loader
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.data.transforms import EvalTransform, TrainTransform
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.shards.contact_sheet import class_names, draw_sheet
from imagenet_rn50.shards.manifest import TRAIN, Manifest
from imagenet_rn50.shards.store import ShardStore
from imagenet_rn50.utils.errors import InputError, require_at_least
from imagenet_rn50.utils.files import atomic_file, require_writable_file
from imagenet_rn50.utils.formatting import first_name

_LEAST_TILE = 112  # px, enough for an image to be recognised and for most names


def preview(
    store: ShardStore,
    recipe: Recipe,
    out: Path,
    *,
    split: str = TRAIN,
    start: int = 0,
    rows: int = 4,
    columns: int = 8,
) -> Batch:
    """Write a PNG of consecutive images, with exactly the pixels of training or evaluation.

    Images below 112 px are enlarged by a whole number.

    Args:
        store: Where the shards are.
        recipe: Crops, augmentation and the seed of the order.
        out: The PNG to write.
        split: `train` is shuffled and augmented as in training; others as in evaluation.
        start: Position of the first image; in training, the number of samples seen before it.
        rows: Rows of the grid.
        columns: Columns of the grid.

    Returns:
        The images, row by row.

    Raises:
        InputError: If the shards have no such split, it has too few images, a number is out of
            range, or `out` cannot be written.
    """
    for name, value, least in (("rows", rows, 1), ("columns", columns, 1), ("start", start, 0)):
        require_at_least(f"--{name}", value, least)
    require_writable_file(out)
    samples = Manifest.load(store.folder).split(split)
    sampler = DistributedBatchSampler(
        start=start, stop=start + rows * columns, batch=rows * columns
    )
    if split == TRAIN:
        order = ShardShuffleSampler(
            samples.shard_sizes, seed=recipe.seed, window=recipe.data.shuffle_window
        )
        transform = TrainTransform(recipe.data, recipe.seed)
        loader = build_loader(store, samples, sampler, transform, order=order)
    elif sampler.stop <= samples.num_samples:
        evaluation = EvalTransform(recipe.data.eval_resize, recipe.data.eval_size)
        loader = build_loader(store, samples, sampler, evaluation)
    else:
        raise InputError(
            f"--start {start} and --rows x --columns go beyond the end of {split}",
            expected=f"at most {samples.num_samples} images",
            found=f"{sampler.stop}",
        )
    (batch,) = loader
    names = class_names(store.folder, samples)
    captions = [(first_name(names[label]),) for label in batch.labels.tolist()]
    tiles, side = _tiles(batch.images)
    sheet = draw_sheet(tiles, captions, num_columns=columns, tile=side)
    with atomic_file(out) as file:
        sheet.save(file, format="PNG")
    return batch


def _tiles(images: torch.Tensor) -> tuple[list[Image.Image], int]:
    """Return images as tiles, and their side, px.

    Small ones are enlarged without interpolation, which keeps the pixels of training visible.

    Args:
        images: (B, 3, H, H) uint8.
    """
    side = images.shape[-1]
    side *= max(1, -(-_LEAST_TILE // side))
    found = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().numpy()]
    return [image.resize((side, side), Image.Resampling.NEAREST) for image in found], side
