"""Sources that are folders of files: Kaggle's ILSVRC tree, and ImageFolder."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

from imagenet_rn50.classes import WNID, Classes
from imagenet_rn50.errors import InputError
from imagenet_rn50.files import read_text
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION
from imagenet_rn50.shards.sources.base import (
    PICTURE_SUFFIXES,
    Listed,
    Source,
    is_picture,
    readable,
    with_keys,
)

MAPPING = "LOC_synset_mapping.txt"
SOLUTION = "LOC_val_solution.csv"
_KAGGLE_PICTURES = Path("ILSVRC") / "Data" / "CLS-LOC"


def is_kaggle(root: Path) -> bool:
    """Says whether `root` holds Kaggle's ILSVRC tree."""
    return (root / _KAGGLE_PICTURES).is_dir()


def is_imagefolder(root: Path) -> bool:
    """Says whether `root` holds a folder of classes for training, for validation, or for both."""
    return any((root / name).is_dir() for name in (TRAIN, "val", VALIDATION))


def read_kaggle(root: Path) -> Source:
    """Lists Kaggle's tree: `train/<wnid>/*.JPEG`, a flat `val/` and its CSV.

    Args:
        root: The folder that holds `ILSVRC/` and the `LOC_*` files.

    Raises:
        InputError: When `val/` has no CSV, or the CSV, the mapping and the folders disagree.
    """
    pictures = root / _KAGGLE_PICTURES
    train = list(class_folders(root, pictures / TRAIN))
    val_folder = pictures / "val"
    validation = list(_files(root, val_folder, wnid="")) if val_folder.is_dir() else []
    wnid_of: dict[str, str] = {}
    if validation:
        wnid_of = read_solution(root / SOLUTION)
        _require_same_pictures({row.stem for row in validation}, set(wnid_of), root / SOLUTION)
    validation = [row._replace(wnid=wnid_of[row.stem]) for row in validation]
    classes = classes_of(root, {row.wnid for row in train}, set(wnid_of.values()))
    splits = {
        name: with_keys(rows, classes)
        for name, rows in ((TRAIN, train), (VALIDATION, validation))
        if rows
    }
    return Source(root=root, layout="kaggle", classes=classes, splits=splits)


def read_imagefolder(root: Path) -> Source:
    """Lists `train/<wnid>/` and `val/<wnid>/` (or `validation/<wnid>/`).

    Raises:
        InputError: When validation has a class that training lacks, or a mapping disagrees.
    """
    train = list(class_folders(root, root / TRAIN))
    val_folder = root / ("val" if (root / "val").is_dir() else VALIDATION)
    validation = list(class_folders(root, val_folder))
    classes = classes_of(root, {row.wnid for row in train}, {row.wnid for row in validation})
    splits = {
        name: with_keys(rows, classes)
        for name, rows in ((TRAIN, train), (VALIDATION, validation))
        if rows
    }
    return Source(root=root, layout="imagefolder", classes=classes, splits=splits)


def read_solution(path: Path) -> dict[str, str]:
    """Reads Kaggle's ground truth: `ImageId,PredictionString`, the wnid before up to five boxes.

    Returns:
        The wnid by picture name without ending.

    Raises:
        InputError: When the file is missing, an image has two rows, or a row not one class.
    """
    if not path.is_file():
        raise InputError(
            f"the validation pictures have no ground truth: {path} is missing",
            expected=f"{SOLUTION} beside ILSVRC/, as in Kaggle's download",
            fix="put it there, or take the val folder away to pack the training pictures alone",
        )
    wnid_of: dict[str, str] = {}
    line_of: dict[str, int] = {}
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        for row in rows:
            image, words = row.get("ImageId"), (row.get("PredictionString") or "").split()
            # A box is a wnid and four numbers.
            if not image or len({*words[:1], *filter(WNID.fullmatch, words)}) != 1:
                raise InputError(
                    f"line {rows.line_num} of {path} does not name an image and its one class",
                    expected="rows like 'ILSVRC2012_val_00048981,n03995372 85 1 499 272'",
                    found=repr(row),
                )
            if image in wnid_of:
                raise InputError(
                    f"{path} labels the image {image} twice",
                    expected="one row per image",
                    found=f"{wnid_of[image]} in line {line_of[image]}, {words[0]} in line "
                    f"{rows.line_num}",
                    fix="delete the wrong row",
                )
            wnid_of[image], line_of[image] = words[0], rows.line_num
    except csv.Error as error:
        raise InputError(
            f"line {rows.line_num} of {path} cannot be read", expected="CSV", found=str(error)
        ) from None
    return wnid_of


def classes_of(root: Path, train: set[str], validation: set[str]) -> Classes:
    """Makes the classes from the wnids that occur, and from the mapping where there is one.

    The index of a class is the rank of its wnid; with a mapping, both must give the same ranks.

    Args:
        root: The folder that may hold `LOC_synset_mapping.txt`.
        train: The wnids of the training pictures.
        validation: The wnids of the validation pictures.

    Raises:
        InputError: When a wnid occurs that the mapping, or training, lacks, or the other way round.
    """
    path = root / MAPPING
    occurring = train or validation
    if not path.is_file():
        _require_no_surplus(validation, occurring, "validation", "the training pictures")
        wnids = tuple(sorted(occurring))
        return Classes(wnids=wnids, names=wnids)
    classes = Classes.from_synset_mapping(path)
    known = set(classes.wnids)
    _require_no_surplus(validation, known, f"the validation ground truth of {root}", str(path))
    _require_no_surplus(train, known, f"the training folder of {root}", str(path))
    if occurring and occurring != known:
        missing = sorted(known - occurring)
        raise InputError(
            f"{path} names {len(missing)} classes that have no pictures, such as {missing[0]}",
            expected="as many classes as there are, since the index of a class is its rank",
            found=f"{len(known)} classes in the mapping, {len(occurring)} with pictures",
            fix="complete the pictures, or leave only the classes that occur in the mapping",
        )
    return classes


def _require_no_surplus(found: set[str], known: set[str], where: str, reference: str) -> None:
    """Stops when `where` has a wnid that `reference` lacks."""
    if surplus := sorted(found - known):
        raise InputError(
            f"{where} has the class {surplus[0]}, which {reference} lacks",
            expected=f"only the {len(known)} classes of {reference}",
            found=f"{len(surplus)} more: {', '.join(surplus[:5])}",
        )


def _require_same_pictures(pictures: set[str], solved: set[str], path: Path) -> None:
    """Stops when the val folder and its ground truth do not name the same pictures."""
    if pictures == solved:
        return
    unsolved, absent = sorted(pictures - solved), sorted(solved - pictures)
    example = f"{unsolved[0]} has no row" if unsolved else f"{absent[0]} has no picture"
    raise InputError(
        f"the val folder and {path} do not name the same pictures",
        expected="one row a picture",
        found=f"{len(unsolved)} pictures without a row, {len(absent)} rows without a picture "
        f"({example})",
    )


def class_folders(root: Path, folder: Path) -> Iterator[Listed]:
    """Lists `folder`/<wnid>/ by wnid and file name.

    Raises:
        InputError: When one holds no pictures: without it, classes behind it had other indices.
    """
    if not folder.is_dir():
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        pictures = list(_files(root, Path(entry.path), wnid=entry.name))
        if not pictures:
            inside = sorted(readable(name) for name in os.listdir(entry.path))
            raise InputError(
                f"{readable(entry.path)} is the folder of a class without pictures",
                expected=f"files ending in {', '.join(sorted(PICTURE_SUFFIXES))} right within it",
                found=", ".join(inside[:3]) + " ..." * (len(inside) > 3) or "nothing",
                fix="put its pictures there, or take the folder away if it is no class",
            )
        yield from pictures


def _files(root: Path, folder: Path, wnid: str) -> Iterator[Listed]:
    """Lists the pictures that lie in `folder` by file name."""
    prefix = folder.relative_to(root).as_posix()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_picture(entry.name):
            if not entry.is_file():
                raise InputError(
                    f"{readable(entry.path)} is named as a picture, but is no file",
                    found="a link that leads nowhere" if entry.is_symlink() else "a folder",
                    fix="mend it or take it away; pictures are not left out unnoticed",
                )
            size = entry.stat().st_size
            yield Listed(Path(entry.name).stem, wnid, f"{prefix}/{entry.name}", 0, size)
