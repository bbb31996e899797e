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
from imagenet_rn50.data.image_folder import make_file_loader, read_image
from imagenet_rn50.data.loader import Loader, build_loader
from imagenet_rn50.data.reader import ShardReader
from imagenet_rn50.data.sampler import DistributedBatchSampler
from imagenet_rn50.data.transforms import Transform
from imagenet_rn50.evaluation.load_model import LoadedModel, check_classes, check_wnids
from imagenet_rn50.shards.imagenet1k import complete_splits
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.sources.base import SourceImage, Unpacked
from imagenet_rn50.shards.sources.folders import labelled
from imagenet_rn50.shards.sources.scan import Scan, scan, unusable, without_class
from imagenet_rn50.shards.store import ShardStore, open_shards
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_json

Layout = Literal["imagenetv2", "imagenet-a", "imagenet-r", "imagenet-sketch"]
_NUMBERED, _COMPLETE, _BY_WNID = "imagenetv2", "imagenet-sketch", "wnids"


class ImageSet(Protocol):
    """Labeled images in a fixed order."""

    @property
    def name(self) -> str:
        """Its name in results."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices; (n,) int64."""

    @property
    def subset(self) -> NDArray[np.int64] | None:
        """The classes that a model may predict, sorted; None for all."""

    @property
    def description(self) -> dict[str, Any]:
        """Its identity, for metrics.json."""

    def key_of(self, index: int) -> str:
        """Return the name of an image."""

    def read(self, index: int) -> bytes:
        """Return an image as JPEG bytes."""

    def loader(
        self,
        sampler: DistributedBatchSampler,
        transform: Transform,
        num_workers: int,
        pin_memory: bool,
    ) -> Loader:
        """Return a loader for one rank; `Batch.indices` are positions in `labels`."""


@dataclass(frozen=True)
class ShardImages:
    """A split of packed shards.

    Args:
        store: The shards.
        name: The split: `validation` or `train`.
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
        complete = complete_splits(classes, {self.name: len(self.labels)}, self._manifest.options)
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
        """Return the JPEG of a sample."""
        with ShardReader(self.store, self._manifest.split(self.name)) as reader:
            return reader.read(index)

    def loader(
        self,
        sampler: DistributedBatchSampler,
        transform: Transform,
        num_workers: int,
        pin_memory: bool,
    ) -> Loader:
        """Return a loader for one rank."""
        return build_loader(
            self.store,
            self._manifest.split(self.name),
            sampler,
            transform,
            num_workers=num_workers,
            pin_memory=pin_memory,
        )


@dataclass(frozen=True)
class FolderImages:
    """A test set of files with one folder per class; see `read_folder`.

    Args:
        root: The folder that holds the class folders.
        layout: Layout of the folders: a `Layout`, or `wnids` if not known more exactly.
        images: The images, by class index and file name.
        subset: The classes that a model may predict, sorted; None for all.
        not_counted: Files that are not images.
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
        """Return the path of an image, relative to the folder."""
        return self.images[index].path

    def read(self, index: int) -> bytes:
        """Return an image as RGB or gray JPEG bytes."""
        return read_image(self.root, self.images[index])

    def loader(
        self,
        sampler: DistributedBatchSampler,
        transform: Transform,
        num_workers: int,
        pin_memory: bool,
    ) -> Loader:
        """Return a loader for one rank."""
        return make_file_loader(
            self.root,
            self.images,
            sampler,
            transform,
            num_workers=num_workers,
            pin_memory=pin_memory,
        )


def read_folder(
    root: Path, num_classes: int, classes: Classes | None, layout: Layout | None = None
) -> FolderImages:
    """List the images of a test set of files.

    Args:
        root: The folder that holds the class folders.
        num_classes: Number of classes of the model.
        classes: The classes, needed if folders are named by wnid.
        layout: Its layout; None detects it.

    Raises:
        InputError: If its layout is unknown, its classes are not those of the model, or it holds
            files that are not images of a class.
    """
    found = _scan(root)
    folders = sorted(found.classes)
    detected = layout or _detect(root, folders)
    if detected == _NUMBERED:
        label_of = _numbered(root, folders, num_classes)
    else:
        label_of = _by_wnid(root, folders, classes, num_classes, complete=detected == _COMPLETE)
    listed = sorted(labelled(root, found), key=lambda row: (label_of[row.wnid], row.path))
    images = tuple(
        SourceImage(row.path, label_of[row.wnid], row.path, 0, row.length) for row in listed
    )
    if bad := unusable(root, images, found.unpacked):
        raise InputError(
            f"{len(bad)} files of {root} cannot be evaluated",
            expected="only images in class folders",
            found="; ".join(bad[:5]) + "; ..." * (len(bad) > 5),
            fix="replace or remove them",
        )
    present = np.array(sorted(label_of.values()), dtype=np.int64)
    subset = present if len(present) < num_classes else None
    return FolderImages(root, detected, images, subset, tuple(found.unpacked))


def _scan(root: Path) -> Scan:
    """List the class folders, and why files beside them do not count."""
    if not root.is_dir():
        raise InputError(f"there is no folder {root}", expected="one folder per class")
    found = scan(root, root, "test")
    found.unpacked += without_class(root, found, found.loose, "test")
    return found


def _detect(root: Path, folders: list[str]) -> str:
    """Detect the layout of a test set."""
    if folders and all(name.isdecimal() for name in folders):
        return _NUMBERED
    if folders and all(WNID.fullmatch(name) for name in folders):
        return _BY_WNID
    found = ", ".join(folders[:5]) or "no folders"
    raise InputError(
        f"the layout of {root} is unknown",
        expected="one folder per class, named 0 to 999 (ImageNet-V2) or by wnid (-A, -R, -Sketch)",
        found=found,
        fix="pass the folder that holds the class folders",
    )


def _numbered(root: Path, folders: list[str], num_classes: int) -> dict[str, int]:
    """Return the class index by folder name, for folders named by number."""
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
    """Return the class index by folder name, for folders named by wnid."""
    if classes is None:
        raise InputError(
            f"the folders of {root} are named by wnid, but those of the model are unknown",
            expected="a list of classes: classes.json or LOC_synset_mapping.txt",
            fix="pass one as --classes, or shards as --shards",
        )
    if surplus := [name for name in folders if name not in classes.index_of]:
        raise InputError(
            f"{root} has folders of classes that the model does not have",
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
    """Read ImageNet-ReaL's labels of a set of images.

    Args:
        path: `real.json`.
        images: ImageNet's validation images, in any order.
        num_classes: Number of classes of the model.

    Returns:
        The classes that fit each image, in the order of `images`; empty if none does.

    Raises:
        InputError: If the file is for other images or classes, has no labels for these images, or
            keys are not those of ImageNet.
    """
    lists = read_json(path)
    if not _is_list_of_classes(lists, num_classes):
        raise InputError(
            f"{path} does not list reassessed labels",
            expected=f"a list of lists of class indices from 0 to {num_classes - 1}",
        )
    numbers = [_number_of(images.key_of(index)) for index in range(len(images.labels))]
    highest = max(numbers)
    # A set without its bad images has gaps in its numbers, so the file may have more lists.
    is_complete = highest == len(numbers)
    if len(lists) < highest or (is_complete and len(lists) != highest):
        raise InputError(
            f"{path} is not for these images",
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
            expected="keys like ILSVRC2012_val_00000001, which select a list of real.json",
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
    """Open the images to evaluate on.

    Args:
        loaded: The model.
        shards: Folder or address of shards; if `folder` is given, only their classes are used.
        folder: A test set of files.
        split: Split of the shards.
        layout: Layout of the folder; None detects it.
        classes: List of the model's classes, see `Classes.read`.
        cache: Local folder to cache remote shards in.

    Returns:
        The images, and the classes with their wnids, if known.

    Raises:
        InputError: If neither shards nor folder is given, or classes differ from the model's.
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
