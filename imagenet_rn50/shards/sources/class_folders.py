"""ImageFolder, with folders of splits (`train/cats/`, `val/cats/`) or without (`cats/`, `dogs/`).

A folder of class folders can be mistaken: a folder named `test` may be a split or a class, `images`
may hold the classes. Such names are refused; among the folders of `train/`, any name is a class.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from imagenet_rn50.shards.formats import has_image_suffix, is_image
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION
from imagenet_rn50.shards.sources.base import Source, readable, with_keys
from imagenet_rn50.shards.sources.folders import (
    MAPPING,
    SPLIT_FOLDERS,
    classes_of,
    kaggle_folder,
    labelled,
    read_splits,
    split_folders,
)
from imagenet_rn50.shards.sources.scan import (
    JUNK_FOLDERS,
    OTHER_SPLITS,
    File,
    entries_of,
    is_file,
    is_folder,
    is_junk,
    scan,
    without_class,
)
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.formatting import quoted, shortened

_MAX_DEPTH = 4  # of folders that are searched for an image before the layout is known
_MAX_SHOWN = 5
_MAX_OPENED = 20  # files per folder that are opened, if no name ends as an image's
_SPLIT_WORDS = {*SPLIT_FOLDERS[TRAIN], *SPLIT_FOLDERS[VALIDATION], *OTHER_SPLITS}
_FILLERS = {
    *("set", "split", "folder", "dir", "fold"),
    *("data", "dataset", "image", "images", "img", "imgs", "photo", "photos", "picture"),
    *("pictures", "jpegimages", "annotation", "annotations", "label", "labels", "mask", "masks"),
    *("all", "raw", "original", "class", "classes"),
}
"""Words that make no class of a folder's name: `images`, `raw_data`, `test-set`."""


def is_imagefolder(root: Path) -> bool:
    """Return whether `root` holds folders of splits, or at least two class folders with images."""
    if kaggle_folder(root) is not None:
        return kaggle_folder(root) != root and bool(split_folders(root))
    return bool(split_folders(root)) or is_class_folders(root)


def is_class_folders(root: Path) -> bool:
    """Return whether `root` holds at least two folders with images, none of which holds splits."""
    if kaggle_folder(root) is not None or split_folders(root):
        return False
    folders = _folders_in(root)
    if any(_holds_splits(folder) for folder in folders):
        return False
    return sum(_holds_images(folder) for folder in folders) >= 2


def describe(root: Path) -> str:
    """Return what a folder holds that fits no layout."""
    folders = {path.name: path for path in _folders_in(root)}
    parts = []
    for entry in entries_of(root)[:_MAX_SHOWN]:
        name = readable(entry.name) + "/" * is_folder(entry)
        if entry.name in folders:
            has_images = _holds_images(folders[entry.name])
            name += " (a folder of images)" if has_images else " (no images)"
        elif is_file(entry) and is_image(entry.path):
            name += " (an image)"
        parts.append(name)
    return ", ".join(parts)


def read_imagefolder(root: Path, train_only: bool = False) -> Source:
    """List `train/<class>/` and `val/<class>/` (or `validation/`, `valid/`), or just `<class>/`.

    Args:
        root: The folder of the splits or of the classes.
        train_only: Whether validation is not read.

    Raises:
        InputError: When a folder may be a split or a class, validation has a class that training
            lacks, or a mapping disagrees.
    """
    folders = split_folders(root)
    if not folders:
        return _read_classes(root)
    _require_no_classes_beside(root, folders)
    source = read_splits(root, root, "imagefolder", train_only)
    source.notes.extend(_notes(source.classes.wnids))
    return source


def _read_classes(root: Path) -> Source:
    """List `<class>/`: training images alone."""
    folders = _folders_in(root)
    if len(folders) < 2:
        raise InputError(
            f"the source {root} has no two folders of classes",
            expected="at least 2 classes, in a folder each",
            found=describe(root),
            fix="name the folder that holds all folders of classes with --source",
        )
    _require_clear_names(root, folders)
    _require_no_groups(root, folders)
    _require_distinct(folders)
    found = scan(root, root, TRAIN)
    listed = labelled(root, found)
    classes = classes_of(root, set(found.classes), set())
    loose = [file for file in found.loose if file.path != MAPPING]
    unpacked = found.unpacked + without_class(root, found, loose, TRAIN)
    notes = [*_notes(classes.wnids), *_nested_notes(found.classes)]
    splits = {TRAIN: with_keys(listed, classes)}
    return Source(root, "imagefolder", classes, splits, unpacked, notes)


def _folders_in(root: Path) -> list[Path]:
    """Return the folders that may be class folders, by name."""
    return [
        Path(entry.path)
        for entry in entries_of(root)
        if is_folder(entry)
        and not entry.name.startswith(".")
        and not is_junk(entry.name, JUNK_FOLDERS)
    ]


def _holds_splits(folder: Path) -> bool:
    """Return whether a folder holds folders of splits, so that it is a source and not a class."""
    return any(
        is_folder(entry) and entry.name.lower() in _SPLIT_WORDS for entry in _entries(folder)
    )


def _holds_images(folder: Path, max_depth: int = _MAX_DEPTH) -> bool:
    """Return whether an image is in a folder, or in the folders in it down to a depth."""
    entries = _entries(folder)
    files = [entry.path for entry in entries if is_file(entry)]
    if any(map(has_image_suffix, files)) or any(map(is_image, files[:_MAX_OPENED])):
        return True
    return max_depth > 1 and any(
        _holds_images(Path(entry.path), max_depth - 1) for entry in entries if is_folder(entry)
    )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder; none if it cannot be read, which `scan` refuses."""
    try:
        return entries_of(folder)
    except InputError:
        return []


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name.lower())


def _require_clear_names(root: Path, folders: Iterable[Path]) -> None:
    """Raise an error if a folder among class folders may be something else, by its name."""
    for folder in folders:
        words = set(_words(folder.name))
        names_split = bool(words & _SPLIT_WORDS)
        if words and words <= _SPLIT_WORDS | _FILLERS:
            meaning = "a split" if names_split else "the folder of all images"
        elif names_split and not _holds_images(folder, max_depth=1):
            meaning = "a split"
        else:
            continue
        raise InputError(
            f"{readable(str(folder))} may be a class or {meaning}, by its name",
            expected="folders of classes, or folders of splits named train/ and val/",
            found=describe(root),
            fix=_fix_of_class(folder)
            + (
                "; if it is a split, rename the splits to train/ and val/, or move it elsewhere "
                "and validate on a part of the training images: --holdout 0.1"
                if names_split
                else f"; if it holds the classes: --source {quoted(readable(str(folder)))}"
            ),
        )


def _fix_of_class(folder: Path) -> str:
    return (
        f"if {readable(folder.name)}/ is a class, rename it, or move all folders of classes into a "
        "new folder named train/, where every folder is a class, and name the folder that holds "
        "train/ with --source"
    )


def _require_no_classes_beside(root: Path, folders: dict[str, Path]) -> None:
    """Raise an error if class folders lie beside a split's folder that may be one of them.

    So it is where `train/` or `valid/` is the name of a class, and where `val/` lies in the folder
    of the training classes.
    """
    flat = [path for path in folders.values() if not any(_folders_in(path))]
    if TRAIN in folders and folders[TRAIN] not in flat:
        return
    taken = {path.name for path in folders.values()}
    beside = [
        path
        for path in _folders_in(root)
        if path.name not in taken and path.name.lower() not in _SPLIT_WORDS and _holds_images(path)
    ]
    if not beside:
        return
    shown = ", ".join(f"{readable(path.name)}/" for path in beside[:3])
    split = flat[0] if flat else next(iter(folders.values()))
    raise InputError(
        f"{readable(str(split))} is named as a split, and folders of images lie beside it",
        expected="folders of classes, or train/ and val/ with the folders of classes in each",
        found=f"{split.name}/ beside {shown}",
        fix=_fix_of_class(split)
        + f"; if it is a split, move the training classes into {readable(str(root / 'train'))}/",
    )


def _require_no_groups(root: Path, folders: Iterable[Path]) -> None:
    """Raise an error if folders hold folders of the same names: then these are the classes."""
    holders: dict[str, list[str]] = defaultdict(list)
    for folder in folders:
        if _holds_images(folder, max_depth=1):
            return
        for path in _folders_in(folder):
            holders[path.name].append(folder.name)
    for inner, names in holders.items():
        if len(names) > 1:
            first, second = map(readable, names[:2])
            raise InputError(
                f"{readable(inner)}/ is in {first}/ and in {second}/ of {root}, so these are "
                "no classes by what they hold",
                expected="folders of classes, or folders of splits named train/ and val/",
                found=f"{first}/{readable(inner)}/ and {second}/{readable(inner)}/",
                fix=f"rename splits to train/ and val/; if {first}/ and {second}/ are classes, "
                "move all folders of classes into a new folder named train/",
            )


def _require_distinct(folders: Iterable[Path]) -> None:
    """Raise an error if two class folders are links to one: its images would have two classes."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        if (other := seen.setdefault(folder.resolve(), folder)) is not folder:
            raise InputError(
                f"the folders of classes {readable(str(other))} and {readable(folder.name)} are "
                "the same folder",
                expected="one class per image",
                found=f"links to {readable(str(folder.resolve()))}",
                fix="remove one of the links",
            )


def _notes(names: Iterable[str]) -> Iterator[str]:
    """Yield what to know about the names of classes."""
    names = list(names)
    if all(re.fullmatch(r"[0-9]+", name) for name in names):
        by_number = sorted(names, key=int)
        if by_number != names:
            pair = next(pair for pair in zip(names, by_number, strict=True) if len(set(pair)) > 1)
            yield (
                f"the names of classes are numbers, but sorted as text: class index "
                f"{names.index(pair[0])} is {pair[0]}, not {pair[1]} (name them "
                f"{pair[1].zfill(len(by_number[-1]))} ... {by_number[-1]} to sort them as numbers)"
            )
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[" ".join(name.casefold().split())].append(name)
    for group in alike.values():
        if len(group) > 1:
            shown = " and ".join(repr(readable(name)) for name in group)
            yield f"{shown} are {len(group)} classes, whose names differ only in case or spaces"


def _nested_notes(classes: dict[str, list[File]]) -> Iterator[str]:
    """Yield which class folders hold folders, whose images are of the class, too."""
    for name, files in classes.items():
        inner = sorted(
            {
                PurePosixPath(*parts[:2])
                for file in files
                if len(parts := PurePosixPath(file.path).parts) > 2
            }
        )
        if inner:
            shown = shortened([f"{readable(path.as_posix())}/" for path in inner], 3)
            yield f"images in {shown} are of the class {readable(name)}"
