"""Which images a command names, and whether the model can be counted over them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from imagenet_rn50.classes import Classes
from imagenet_rn50.errors import InputError
from imagenet_rn50.evaluation.agreement import require_same_classes, require_same_wnids
from imagenet_rn50.evaluation.image_sets import FolderImages, Layout, ShardImages, read_folder
from imagenet_rn50.evaluation.subject import Subject
from imagenet_rn50.loading.cache import open_shards


class Target(NamedTuple):
    """What is counted over.

    Attributes:
        images: The labelled pictures.
        classes: The classes with their wnids, where they are known.
    """

    images: ShardImages | FolderImages
    classes: Classes | None


def open_target(
    subject: Subject,
    shards: str | None,
    folder: Path | None,
    *,
    split: str = "validation",
    layout: Layout | None = None,
    classes: Path | None = None,
    cache: Path | None = None,
) -> Target:
    """Opens the images that a command names.

    Args:
        subject: The model.
        shards: Folder or address of shards; beside `folder` they only give the classes.
        folder: A test set of files.
        split: Which split of the shards.
        layout: How the folder is laid out; None to find out.
        classes: Lists the model's classes, as `Classes.read` takes it.
        cache: Folder of this machine to keep remote shards in.

    Raises:
        InputError: When neither is named, or the classes are not the model's.
    """
    store = None if shards is None else open_shards(shards, cache=cache)
    lists = [] if classes is None else [(str(classes), Classes.read(classes))]
    lists += [] if store is None else [(str(shards), Classes.load(store.folder))]
    lists += [] if subject.classes is None else [(subject.name, subject.classes)]
    known = lists[0][1] if lists else None
    for where, listed in lists:
        require_same_classes(subject.name, subject.labels, where, listed)
        require_same_wnids(*lists[0], where, listed)
    if folder is not None:
        return Target(read_folder(folder, len(subject.labels), known, layout), known)
    if store is None:
        raise InputError(
            "there is nothing to evaluate on",
            expected="--shards SHARDS, or --images DIR for ImageNet-V2, -A, -R or -Sketch",
        )
    return Target(ShardImages(store, split), known)
