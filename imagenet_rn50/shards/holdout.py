"""Hold-outs: a stratified validation split taken out of the training images.

Which images a class gives depends on their keys and the seed alone, not on the files or shards that
hold them. So packing with a hold-out, and taking one out of shards that were packed without, choose
the same images, and a hold-out stays the same when the data is packed anew.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from imagenet_rn50.shards.manifest import TRAIN, VALIDATION
from imagenet_rn50.shards.sources.base import Source, SourceImage
from imagenet_rn50.utils.errors import InputError


def require_fraction(option: str, value: float | None, *, includes_one: bool = False) -> None:
    """Raise an error unless a fraction is None, or above 0 and below 1.

    Args:
        option: Name of the option.
        value: Its value.
        includes_one: Whether 1 is allowed.

    Raises:
        InputError: When it is out of range.
    """
    if value is not None and not (0 < value < 1 or (includes_one and value == 1)):
        bound = "at most 1" if includes_one else "below 1"
        raise InputError(f"{option} must be above 0 and {bound}, got {value:g}")


def key_ranks(keys: Iterable[bytes], seed: int, purpose: str) -> NDArray[np.uint64]:
    """Return a random number per key that depends on key, seed and purpose alone; (n,) uint64."""
    prefix = f"{purpose}/{seed}/".encode()
    digests = b"".join(hashlib.sha256(prefix + key).digest()[:8] for key in keys)
    return np.frombuffer(digests, dtype="<u8")


def num_selected(num_images: int, fraction: float) -> int:
    """Return how many of a class's images a fraction selects: rounded, and at least one."""
    return max(math.floor(num_images * fraction + 0.5), 1)


def divide_class(
    keys: Iterable[bytes], name: str, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide the training images of one class into training and validation.

    At least one image is held out, and never all.

    Args:
        keys: Keys of the images.
        name: Name of the class.
        fraction: Fraction of the images that is held out, in (0, 1).
        seed: Seed of the choice.

    Returns:
        Positions among `keys` of the training and of the validation images, each ascending.

    Raises:
        InputError: When the class has a single image.
    """
    order = np.argsort(key_ranks(keys, seed, "holdout"), kind="stable").astype(np.int64)
    if len(order) == 1:
        raise InputError(
            f"--holdout cannot divide the class {name}",
            expected="at least 2 training images per class",
            found="1 image",
            fix="add images of the class, or leave the class out",
        )
    count = min(num_selected(len(order), fraction), len(order) - 1)
    return np.sort(order[count:]), np.sort(order[:count])


def hold_out(source: Source, fraction: float, seed: int) -> Source:
    """Return a source whose validation split is taken out of its training images.

    Args:
        source: The source, without validation images.
        fraction: Fraction of the training images of each class that is held out, in (0, 1).
        seed: Seed of the choice.

    Raises:
        InputError: When the source has validation images, has no training images, or has a class
            of a single image.
    """
    require_fraction("--holdout", fraction)
    if VALIDATION in source.splits:
        raise InputError(
            "--holdout would replace the validation images that the source has",
            expected="a source without validation images",
            found=f"{len(source.splits[VALIDATION]):,} validation images in {source.root}",
            fix="leave --holdout out, or leave theirs out with --train-only",
        )
    by_class: dict[int, list[SourceImage]] = defaultdict(list)
    for image in source.splits[TRAIN]:
        by_class[image.label].append(image)
    held_out: set[str] = set()
    for label, images in by_class.items():
        keys = [image.key.encode() for image in images]
        _, validation = divide_class(keys, source.classes.wnids[label], fraction, seed)
        held_out.update(images[position].key for position in validation)
    splits: dict[str, list[SourceImage]] = {TRAIN: [], VALIDATION: []}
    for image in source.splits[TRAIN]:
        splits[VALIDATION if image.key in held_out else TRAIN].append(image)
    return replace(source, splits=splits, options=source.options | {"holdout": fraction})
