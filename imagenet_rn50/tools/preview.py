"""Write a grid of images as the model sees them, after augmentation."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imagenet_rn50.data.dataset import Batch
from imagenet_rn50.data.loader import build_loader
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.data.transforms import EvalTransform, TrainTransform
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.shards.manifest import TRAIN, Manifest
from imagenet_rn50.shards.store import ShardStore
from imagenet_rn50.utils.errors import InputError, require_at_least
from imagenet_rn50.utils.files import require_writable_file, write_bytes

_GAP = 2  # px between images


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
    buffer = io.BytesIO()
    Image.fromarray(_grid(batch.images, columns)).save(buffer, format="PNG")
    write_bytes(out, buffer.getvalue())
    return batch


def _grid(images: torch.Tensor, columns: int) -> np.ndarray:
    """Return the images in rows with white gaps, (H, W, 3) uint8."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    shape = (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3)
    grid = np.full(shape, 255, np.uint8)
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top = _GAP + number // columns * (height + _GAP)
        left = _GAP + number % columns * (width + _GAP)
        grid[top : top + height, left : left + width] = image
    return grid
