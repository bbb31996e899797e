"""What may be called ImageNet-1k: data with its 1,000 classes and its numbers of images.

The name of a data set proves nothing, so whoever says ImageNet-1k of one (manifest, audit, model
card, metadata on the Hub) asks here first.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from imagenet_rn50.classes import Classes
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION
from imagenet_rn50.utils.errors import InputError

NUM_IMAGES = {TRAIN: 1_281_167, VALIDATION: 50_000}
NUM_CLASSES = 1_000
HUB_NAME = "ILSVRC/imagenet-1k"

# Of the sorted wnids of ILSVRC 2012, one per line; timm ships them as imagenet_synsets.txt.
_WNIDS_SHA256 = "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NAME = re.compile(r"(imagenet|ilsvrc|in1k)(imagenet|ilsvrc|in1k|1k|1000|2012|clsloc)*")


def complete_splits(
    classes: Classes | None,
    num_images: Mapping[str, int],
    options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return the splits that are ImageNet-1k's, by their classes and numbers of images.

    Args:
        classes: The classes of the data set; None when they are not known.
        num_images: The number of images of each split.
        options: How the shards or the view were made: with a `holdout`, validation consists of
            training images, so it is not ImageNet-1k's, however many it has.
    """
    if classes is None:
        return []
    wnids = "".join(f"{wnid}\n" for wnid in classes.wnids)
    if hashlib.sha256(wnids.encode()).hexdigest() != _WNIDS_SHA256:
        return []
    claimed = [split for split, count in num_images.items() if count == NUM_IMAGES.get(split)]
    return [split for split in claimed if split != VALIDATION or not (options or {}).get("holdout")]


def is_name(name: str) -> bool:
    """Return whether a data set of this name would be taken for ImageNet-1k."""
    return _NAME.fullmatch(re.sub(r"[^a-z0-9]", "", name.lower())) is not None


def require_dataset_name(name: str) -> None:
    """Raise an error unless a name can begin the names of files.

    Raises:
        InputError: When it has other characters than letters, digits, - and _.
    """
    if not _FILE_NAME.fullmatch(name):
        raise InputError(
            f"the dataset name {name!r} cannot begin a file name",
            expected="letters, digits, - and _",
        )


def dataset_name(
    asked: str | None,
    default: str,
    classes: Classes | None,
    num_images: Mapping[str, int],
    options: Mapping[str, Any] | None = None,
) -> str:
    """Return the name of a data set, which is ImageNet-1k's only if the data is.

    Args:
        asked: What `--dataset` says; None to derive the name.
        default: What to derive it from, such as the name of a folder.
        classes: The classes of the data set; None when they are not known.
        num_images: The number of images of each split.
        options: How the shards or the view were made; see `complete_splits`.

    Raises:
        InputError: When ImageNet-1k's name is asked for, and the data is not ImageNet-1k.
    """
    name = asked or re.sub(r"[^A-Za-z0-9_-]+", "-", default).lstrip("-_") or "images"
    if not is_name(name) or complete_splits(classes, num_images, options) == list(num_images):
        return name
    if asked is None:
        return f"{name}-{sum(num_images.values())}-images"
    num_classes = "unknown" if classes is None else f"{len(classes):,}"
    found = ", ".join(f"{count:,} {split} images" for split, count in num_images.items())
    raise InputError(
        f"--dataset {name} names ImageNet-1k, and the data is not ImageNet-1k",
        expected=f"its {NUM_CLASSES:,} classes, {NUM_IMAGES[TRAIN]:,} training images and "
        f"{NUM_IMAGES[VALIDATION]:,} validation images",
        found=f"{num_classes} classes, {found}",
        fix="give it a name of its own with --dataset",
    )
