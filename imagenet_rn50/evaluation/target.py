"""Which images a command names, and whether the model can be counted over them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from imagenet_rn50.classes import FILE_NAME as CLASSES_FILE
from imagenet_rn50.classes import Classes
from imagenet_rn50.errors import InputError
from imagenet_rn50.evaluation.agreement import require_same_classes
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
        classes: A classes.json, a folder that holds one, or Kaggle's LOC_synset_mapping.txt.
        cache: Folder of this machine to keep remote shards in.

    Raises:
        InputError: When neither is named, or the classes are not the model's.
    """
    store = None if shards is None else open_shards(shards, cache=cache)
    known, where = subject.classes, subject.name
    if classes is not None:
        known, where = read_classes(classes), str(classes)
    elif store is not None:
        known, where = Classes.load(store.folder), str(shards)
    if known is not None:
        require_same_classes(subject.name, subject.labels, where, known)
    if folder is not None:
        return Target(read_folder(folder, len(subject.labels), known, layout), known)
    if store is None:
        raise InputError(
            "there is nothing to evaluate on",
            expected="--shards SHARDS, or --images DIR for ImageNet-V2, -A, -R or -Sketch",
        )
    return Target(ShardImages(store, split), known)


def read_classes(path: Path) -> Classes:
    """Reads classes from any file that lists them, as every `--classes` takes it.

    Args:
        path: A classes.json, a folder that holds one, or Kaggle's LOC_synset_mapping.txt.

    Raises:
        InputError: When there is no such file, or it lists none.
    """
    if path.is_dir() or path.name == CLASSES_FILE:
        return Classes.load(path if path.is_dir() else path.parent)
    if not path.is_file():
        raise InputError(f"there is no file {path}", expected=f"{CLASSES_FILE} or a synset mapping")
    return Classes.from_synset_mapping(path)
