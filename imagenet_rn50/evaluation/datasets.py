"""Labelled images to evaluate on: a split of shards, or a test set of files.

Test sets have one folder per class. ImageNet-V2 names them by class index, "0" to "999", which must
be read as numbers: sorted as text, class 10 would come before class 2. ImageNet-A, -R and -Sketch
name them by wnid. -A and -R have 200 of the 1,000 classes; as in their authors' code, all other
logits are dropped, so that a model cannot predict a class outside the set.

ImageNet-ReaL has reassessed labels of ImageNet's validation images (Beyer et al. 2020). `real.json`
lists the classes that fit each image, in the order of the file names, from ILSVRC2012_val_00000001
on. Any of them is right; images with an empty list do not count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from imagenet_rn50.classes import FILE_NAME as CLASSES_FILE
from imagenet_rn50.classes import WNID, Classes
from imagenet_rn50.data.cache import open_shards
from imagenet_rn50.data.image_folder import make_file_loader, read_image
from imagenet_rn50.data.loader import Loader, build_loader
from imagenet_rn50.data.reader import ShardReader, ShardStore
from imagenet_rn50.data.sampler import DistributedBatchSampler
from imagenet_rn50.data.transforms import Transform
from imagenet_rn50.evaluation.load_model import LoadedModel, check_classes, check_wnids
from imagenet_rn50.shards.imagenet1k import complete_splits
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.sources.base import SourceImage, Unpacked
from imagenet_rn50.shards.sources.folders import labelled
from imagenet_rn50.shards.sources.scan import Scan, scan, unusable, without_class
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_json

Layout = Literal["imagenetv2", "imagenet-a", "imagenet-r", "imagenet-sketch"]
_NUMBERED, _COMPLETE, _BY_WNID = "imagenetv2", "imagenet-sketch", "wnids"


class ImageSet(Protocol):
    """Labelled images in a fixed order."""

    @property
    def name(self) -> str:
        """What it is called in results."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices; (n,) int64."""

    @property
    def subset(self) -> NDArray[np.int64] | None:
        """The class indices that a model may name, sorted; None for all."""

    @property
    def description(self) -> dict[str, Any]:
        """What identifies it, for metrics.json."""

    def key_of(self, index: int) -> str:
        """Return the name of a image."""

    def read(self, index: int) -> bytes:
        """Return a image, a JPEG."""

    def loader(
        self,
        share: DistributedBatchSampler,
        transform: Transform,
        num_workers: int,
        pin_memory: bool,
    ) -> Loader:
        """Make the loader of one rank; `Batch.indices` are positions in `labels`."""


@dataclass(frozen=True)
class ShardImages:
    """A split of packed shards.

    Args:
        store: Where they stand.
        name: Which split: `validation` or `train`.
    """

    store: ShardStore
    name: str
    subset: None = None
    not_counted: tuple[Unpacked, ...] = ()

    @cached_property
    def _manifest(self) -> Manifest:
        return Manifest.load(self.store.folder)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class indices; (n,) int64."""
        return self._manifest.split(self.name).labels.astype(np.int64)

    @property
    def description(self) -> dict[str, Any]:
        """Name and fingerprint of the shards, and whether the split is ImageNet-1k's."""
        folder = self.store.folder
        classes = Classes.load(folder) if (folder / CLASSES_FILE).is_file() else None
        complete = complete_splits(classes, {self.name: len(self.labels)})
        return {
            "name": self._manifest.dataset,
            "split": self.name,
            "fingerprint": Manifest.fingerprint_of(folder),
            "is_imagenet1k": self.name in complete,
        }

    def key_of(self, index: int) -> str:
        """Return a sample's key."""
        return self._manifest.split(self.name).key_of(index)

    def read(self, index: int) -> bytes:
        """Return a sample's JPEG."""
        with ShardReader(self.store, self._manifest.split(self.name)) as reader:
            return reader.read(index)

    def loader(
        self,
        share: DistributedBatchSampler,
        transform: Transform,
        num_workers: int,
        pin_memory: bool,
    ) -> Loader:
        """Make the loader of one rank."""
        return build_loader(
            self.store,
            self._manifest.split(self.name),
            share,
            transform,
            num_workers=num_workers,
            pin_memory=pin_memory,
        )


@dataclass(frozen=True)
class FolderImages:
    """A test set of files, one folder a class; see `read_folder`.

    Args:
        root: The folder of the class folders.
        layout: How they are named: a `Layout`, or just `wnids`.
        images: The images, by class index and file name.
        subset: The class indices that a model may name, sorted; None for all.
        not_counted: Files that are no images.
    """

    root: Path
    layout: str
    images: tuple[SourceImage, ...]
    subset: NDArray[np.int64] | None
    not_counted: tuple[Unpacked, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.root.resolve().name

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class indices; (n,) int64."""
        return np.array([image.label for image in self.images], dtype=np.int64)

    @property
    def description(self) -> dict[str, Any]:
        """Name and layout of the folder."""
        others = sum(entry.num_files for entry in self.not_counted)
        return {
            "name": self.name,
            "split": "test",
            "layout": self.layout,
            "files_not_counted": others,
        }

    def key_of(self, index: int) -> str:
        """Return a image's path below the folder."""
        return self.images[index].path

    def read(self, index: int) -> bytes:
        """Return a image as RGB or gray JPEG."""
        return read_image(self.root, self.images[index])

    def loader(
        self,
        share: DistributedBatchSampler,
        transform: Transform,
        num_workers: int,
        pin_memory: bool,
    ) -> Loader:
        """Make the loader of one rank."""
        return make_file_loader(
            self.root,
            self.images,
            share,
            transform,
            num_workers=num_workers,
            pin_memory=pin_memory,
        )


def read_folder(
    root: Path, num_classes: int, classes: Classes | None, layout: Layout | None = None
) -> FolderImages:
    """List a test set of files.

    Args:
        root: The folder of the class folders.
        num_classes: How many classes the model tells apart.
        classes: Translates wnids into class indices; needed where folders are named by wnid.
        layout: How it is laid out; None to find out.

    Raises:
        InputError: If it is laid out in no way that is known, its classes are not the model's, or
            it holds files that are no images of a class.
    """
    found = _scan(root)
    folders = sorted(found.classes)
    named = layout or _detect(root, folders)
    if named == _NUMBERED:
        label_of = _numbered(root, folders, num_classes)
    else:
        label_of = _by_wnid(root, folders, classes, num_classes, complete=named == _COMPLETE)
    listed = sorted(labelled(root, found), key=lambda row: (label_of[row.wnid], row.path))
    images = tuple(
        SourceImage(row.path, label_of[row.wnid], row.path, 0, row.length) for row in listed
    )
    if bad := unusable(root, images, found.unpacked):
        raise InputError(
            f"files of {root} cannot be counted: {len(bad)}",
            expected="images in the folders of classes, and nothing else",
            found="; ".join(bad[:5]) + "; ..." * (len(bad) > 5),
            fix="replace them, or move them elsewhere",
        )
    present = np.array(sorted(label_of.values()), dtype=np.int64)
    subset = present if len(present) < num_classes else None
    return FolderImages(root, named, images, subset, tuple(found.unpacked))


def _scan(root: Path) -> Scan:
    """List the class folders, and says of files beside them why they do not count."""
    if not root.is_dir():
        raise InputError(f"there is no folder {root}", expected="one folder a class")
    found = scan(root, root, "test")
    found.unpacked += without_class(root, found, found.loose, "test")
    return found


def _detect(root: Path, folders: list[str]) -> str:
    """Find out how a test set is laid out."""
    if folders and all(name.isdecimal() for name in folders):
        return _NUMBERED
    if folders and all(WNID.fullmatch(name) for name in folders):
        return _BY_WNID
    found = ", ".join(folders[:5]) or "no folders"
    raise InputError(
        f"{root} is laid out in no way that is known",
        expected="one folder a class, named 0 to 999 (ImageNet-V2) or by wnid (-A, -R, -Sketch)",
        found=found,
        fix="give the folder that holds the class folders",
    )


def _numbered(root: Path, folders: list[str], num_classes: int) -> dict[str, int]:
    """Return the class index by folder name, where that is a number."""
    label_of = {name: int(name) for name in folders if name.isdecimal()}
    if sorted(label_of.values()) != list(range(num_classes)) or len(label_of) != len(folders):
        others = [name for name in folders if not name.isdecimal() or int(name) >= num_classes]
        raise InputError(
            f"{root} is not laid out as ImageNet-V2 for this model",
            expected=f"a folder for each of its classes, named 0 to {num_classes - 1}",
            found=f"{len(folders)} folders" + (f", such as {others[0]}" if others else ""),
        )
    return label_of


def _by_wnid(
    root: Path, folders: list[str], classes: Classes | None, num_classes: int, *, complete: bool
) -> dict[str, int]:
    """Return the class index by folder name, where that is a wnid."""
    if classes is None:
        raise InputError(
            f"the folders of {root} are named by wnid, and the model does not say its classes'",
            expected="a classes.json, or Kaggle's LOC_synset_mapping.txt",
            fix="give one with --classes, or the shards with --shards",
        )
    if surplus := [name for name in folders if name not in classes.index_of]:
        raise InputError(
            f"{root} has folders that are no class of the model",
            expected=f"wnids among its {num_classes} classes",
            found=f"{len(surplus)} others, such as {surplus[0]}",
        )
    if complete and len(folders) != num_classes:
        raise InputError(
            f"{root} is not laid out as {_COMPLETE} for this model",
            expected=f"a folder for each of its {num_classes} classes",
            found=f"{len(folders)} folders",
        )
    return {name: classes.index_of[name] for name in folders}


_KEY = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")


def read_real(path: Path, images: ImageSet, num_classes: int) -> list[frozenset[int]]:
    """Read the reassessed labels of a set.

    Args:
        path: `real.json`.
        images: ImageNet's validation images, in any order.
        num_classes: How many classes the model tells apart.

    Returns:
        The classes that fit, image by image in the order of `images`; empty where none does.

    Raises:
        InputError: If the file lists other images or classes, or none that fit, or keys are not
            ImageNet's.
    """
    lists = read_json(path)
    if not _is_list_of_classes(lists, num_classes):
        raise InputError(
            f"{path} does not list reassessed labels",
            expected=f"a list of lists of class indices from 0 to {num_classes - 1}",
        )
    numbers = [_number_of(images.key_of(index)) for index in range(len(images.labels))]
    highest = max(numbers)
    # A set from which bad images were left out has gaps in its numbers, and fits a longer list.
    is_complete = highest == len(numbers)
    if len(lists) < highest or (is_complete and len(lists) != highest):
        raise InputError(
            f"{path} is not about these images",
            expected=f"{highest} lists, one for each image up to the last one's number",
            found=f"{len(lists)} lists",
        )
    fitting = [frozenset(lists[number - 1]) for number in numbers]
    if not any(fitting):
        raise InputError(f"{path} has only empty lists for these images")
    return fitting


def _is_list_of_classes(value: Any, num_classes: int) -> bool:
    """Return whether a value is a list of lists of class indices."""
    known = range(num_classes)
    return isinstance(value, list) and all(
        isinstance(entry, list) and all(isinstance(c, int) and c in known for c in entry)
        for entry in value
    )


def _number_of(key: str) -> int:
    """Return the number in the name of a validation image, from 1."""
    match = _KEY.search(key)
    if match is None or int(match[1]) < 1:
        raise InputError(
            f"the image {key} is not one of ImageNet's validation images",
            expected="keys like ILSVRC2012_val_00000001, to which real.json can be matched",
        )
    return int(match[1])


def open_images(
    loaded: LoadedModel,
    shards: str | None,
    folder: Path | None,
    *,
    split: str = "validation",
    layout: Layout | None = None,
    classes: Path | None = None,
    cache: Path | None = None,
) -> tuple[ShardImages | FolderImages, Classes | None]:
    """Open the images that a command names.

    Args:
        loaded: The model.
        shards: Folder or address of shards; beside `folder` they only give the classes.
        folder: A test set of files.
        split: Which split of the shards.
        layout: How the folder is laid out; None to find out.
        classes: Lists the model's classes, as `Classes.read` takes it.
        cache: Local folder to cache remote shards in.

    Returns:
        The labelled images, and the classes with their wnids where they are known.

    Raises:
        InputError: If neither is named, or the classes are not the model's.
    """
    store = None if shards is None else open_shards(shards, cache=cache)
    lists = [] if classes is None else [(str(classes), Classes.read(classes))]
    lists += [] if store is None else [(str(shards), Classes.load(store.folder))]
    lists += [] if loaded.classes is None else [(loaded.name, loaded.classes)]
    known = lists[0][1] if lists else None
    for where, listed in lists:
        check_classes(loaded.name, loaded.labels, where, listed)
        check_wnids(*lists[0], where, listed)
    if folder is not None:
        return read_folder(folder, len(loaded.labels), known, layout), known
    if store is None:
        raise InputError(
            "there is nothing to evaluate on",
            expected="--shards SHARDS, or --images DIR for ImageNet-V2, -A, -R or -Sketch",
        )
    return ShardImages(store, split), known
