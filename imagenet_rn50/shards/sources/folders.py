"""Folders of files with `train/<wnid>/` and `val/`: Kaggle's ILSVRC tree, and ImageFolder's.

The images of `val/` lie in folders of classes, or flat beside a CSV that names their classes, or
some of each.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from imagenet_rn50.classes import WNID, Classes
from imagenet_rn50.shards.formats import is_image
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION
from imagenet_rn50.shards.sources.base import Listed, Source, Unpacked, readable, with_keys
from imagenet_rn50.shards.sources.scan import (
    File,
    Scan,
    entries_of,
    is_folder,
    others_beside,
    scan,
    without_class,
)
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_text
from imagenet_rn50.utils.formatting import shortened

MAPPING = "LOC_synset_mapping.txt"
SOLUTION = "LOC_val_solution.csv"
SPLIT_FOLDERS = {TRAIN: ("train", "training"), VALIDATION: ("val", "validation", "valid")}
"""What the folders of the splits are called, in upper or lower case."""
_KAGGLE = ("ILSVRC", "Data", "CLS-LOC")
_KAGGLE_NAMES = {_KAGGLE[0], MAPPING, SOLUTION, "LOC_train_solution.csv"}


def kaggle_folder(root: Path) -> Path | None:
    """Return the folder of `train/` and `val/` in Kaggle's tree; None when it is none.

    Args:
        root: Any folder of the tree, from the one that holds `ILSVRC/` down to `CLS-LOC/`.
    """
    for start in range(len(_KAGGLE)):
        if (images := root.joinpath(*_KAGGLE[start:])).is_dir():
            return images
    return root if root.resolve().name == _KAGGLE[-1] else None


def is_kaggle(root: Path) -> bool:
    """Return whether `root` holds Kaggle's ILSVRC tree, or is a folder of it."""
    return kaggle_folder(root) is not None


def split_folders(images: Path) -> dict[str, Path]:
    """Return the folders of the splits in `images`.

    Raises:
        InputError: When a split has two.
    """
    found: dict[str, Path] = {}
    for entry in entries_of(images):
        for split, names in SPLIT_FOLDERS.items():
            if entry.name.lower() not in names or not is_folder(entry):
                continue
            if split in found:
                raise InputError(
                    f"{images} has two folders of {split} images: {found[split].name} and "
                    f"{entry.name}",
                    expected=f"one folder, named {' or '.join(names)}",
                    fix="move one of them elsewhere",
                )
            found[split] = Path(entry.path)
    return found


def read_kaggle(root: Path, train_only: bool = False) -> Source:
    """List Kaggle's tree: `train/<wnid>/*.JPEG`, and `val/` flat with its CSV, or sorted.

    Args:
        root: The folder that holds `ILSVRC/` and the `LOC_*` files, or one of the tree.
        train_only: Whether validation is not read.

    Raises:
        InputError: When there is no such tree, `val/` is flat without a CSV, or the CSV, the
            mapping and the folders disagree.
    """
    images = kaggle_folder(root)
    if images is None:
        raise InputError(
            f"the source {root} is not Kaggle's tree", expected=f"{'/'.join(_KAGGLE)}/ in it"
        )
    # Paths begin at the folder that holds ILSVRC/, from whichever level the tree was named.
    resolved = images.resolve()
    if root == images or len(images.relative_to(root).parts) < len(_KAGGLE):
        if resolved.parts[-len(_KAGGLE) :] == _KAGGLE:
            root, images = resolved.parents[len(_KAGGLE) - 1], resolved
    return read_splits(root, images, "kaggle", train_only)


def read_splits(root: Path, images: Path, layout: str, train_only: bool) -> Source:
    """List the folders of both splits.

    Args:
        root: The source's folder.
        images: The folder in it, or the same, that holds the folders of the splits.
        layout: `kaggle` or `imagefolder`.
        train_only: Whether validation is not read.

    Raises:
        InputError: When validation has a class that training lacks, or the CSV, the mapping and
            the folders disagree.
    """
    folders = split_folders(images)
    taken = {folder.name for folder in folders.values()}
    unpacked = others_beside(root, images, taken | _KAGGLE_NAMES)
    if root != images and root / _KAGGLE[0] in images.parents:
        unpacked += others_beside(root, root, _KAGGLE_NAMES)
    train: list[Listed] = []
    validation: list[Listed] = []
    if TRAIN in folders:
        train, others = _train(root, folders[TRAIN])
        unpacked += others
    if VALIDATION in folders and train_only:
        count = sum(len(names) for _, _, names in os.walk(folders[VALIDATION], followlinks=True))
        unpacked.append(Unpacked("", _shown(root, folders[VALIDATION]), "--train-only", count))
    elif VALIDATION in folders:
        validation, others = _validation(root, folders[VALIDATION], _find(SOLUTION, root, images))
        unpacked += others
        if not validation:
            unpacked.append(Unpacked("", _shown(root, folders[VALIDATION]), "holds no images", 0))
    mapped = _find(MAPPING, root, images).parent
    classes = classes_of(mapped, {row.wnid for row in train}, {row.wnid for row in validation})
    splits = {
        name: with_keys(rows, classes)
        for name, rows in ((TRAIN, train), (VALIDATION, validation))
        if rows
    }
    return Source(root, layout, classes, splits, unpacked)


def _shown(root: Path, folder: Path) -> str:
    return f"{folder.relative_to(root).as_posix()}/"


def _find(name: str, root: Path, images: Path) -> Path:
    """Return where a file of Kaggle's is: in `root` or further in, down to `images`."""
    folders = [f for f in (*reversed(images.parents), images) if f == root or root in f.parents]
    return next((f / name for f in folders if (f / name).is_file()), root / name)


def _train(root: Path, folder: Path) -> tuple[list[Listed], list[Unpacked]]:
    """List the images of a training folder, and what else it holds."""
    found = scan(root, folder, TRAIN)
    if not found.classes:
        raise InputError(
            f"{folder} has no folders of classes",
            expected=f"{folder.name}/<wnid>/ with the images of each class",
            found=_some([PurePosixPath(file.path).name for file in found.loose]),
            fix="sort the images into folders, or move the folder elsewhere",
        )
    return labelled(folder, found), found.unpacked + without_class(root, found, found.loose, TRAIN)


def _validation(root: Path, folder: Path, solution: Path) -> tuple[list[Listed], list[Unpacked]]:
    """List the images of a validation folder, sorted or flat, and what else it holds."""
    found = scan(root, folder, VALIDATION)
    rows = labelled(folder, found)
    loose = found.loose
    is_flat = not rows and any(is_image(root / file.path) for file in loose)
    if solution.is_file() and (rows or loose):
        wnid_of = read_solution(solution)
        loose = [f for f in loose if _stem(f) not in wnid_of and not is_image(root / f.path)]
        flat = _listed([file for file in found.loose if file not in loose], "")
        _require_same_images([row.stem for row in (*flat, *rows)], set(wnid_of), solution)
        _require_same_classes(rows, wnid_of, solution)
        rows = [row._replace(wnid=wnid_of[row.stem]) for row in flat] + rows
    elif is_flat:
        read_solution(solution)  # says that it is missing
    return rows, found.unpacked + without_class(root, found, loose, VALIDATION)


def labelled(folder: Path, found: Scan) -> list[Listed]:
    """Return the images of class folders, by wnid and file name.

    Raises:
        InputError: When a folder holds none: without it, classes behind it had other indices.
    """
    for wnid, files in found.classes.items():
        if not files:
            path = folder / found.folder_of[wnid]
            inside = [readable(entry.name) for entry in entries_of(path)]
            raise InputError(
                f"{readable(str(path))} is the folder of a class without images",
                expected="the images of the class in it",
                found=_some(inside),
                fix="put its images there, or move the folder elsewhere if it is no class",
            )
    return [row for wnid, files in found.classes.items() for row in _listed(files, wnid)]


def _listed(files: Sequence[File], wnid: str) -> list[Listed]:
    return [Listed(_stem(file), wnid, file.path, 0, file.size) for file in files]


def _stem(file: File) -> str:
    return PurePosixPath(file.path).stem


def _some(names: Sequence[str]) -> str:
    """Return the first of some names."""
    return shortened([readable(name) for name in names], 3) or "nothing"


def read_solution(path: Path) -> dict[str, str]:
    """Read Kaggle's ground truth: `ImageId,PredictionString`, the wnid before up to five boxes.

    Returns:
        The wnid by image name without ending.

    Raises:
        InputError: When the file is missing, an image has two rows, or a row not one class.
    """
    if not path.is_file():
        raise InputError(
            f"the validation images have no ground truth: {path} is missing",
            expected=f"{SOLUTION}, as in Kaggle's download",
            fix="put it there, or sort the images into val/<wnid>/, or pack the training images "
            "alone: --train-only, or with --holdout 0.1 to validate on a part of them",
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
    """Make the classes from the wnids that occur, and from the mapping where there is one.

    The index of a class is the rank of its wnid; with a mapping, both must give the same ranks.

    Args:
        root: The folder that may hold `LOC_synset_mapping.txt`.
        train: The wnids of the training images.
        validation: The wnids of the validation images.

    Raises:
        InputError: When a wnid occurs that the mapping, or training, lacks, or the other way round.
    """
    path = root / MAPPING
    occurring = train or validation
    if not path.is_file():
        _require_no_surplus(validation, occurring, "validation", "the training images")
        wnids = tuple(sorted(occurring))
        return Classes(wnids=wnids, names=wnids)
    classes = Classes.from_synset_mapping(path)
    known = set(classes.wnids)
    _require_no_surplus(validation, known, f"the validation ground truth of {root}", str(path))
    _require_no_surplus(train, known, f"the training folder of {root}", str(path))
    if occurring and occurring != known:
        missing = sorted(known - occurring)
        raise InputError(
            f"{path} names {len(missing)} classes that have no images, such as {missing[0]}",
            expected="as many classes as there are, since the index of a class is its rank",
            found=f"{len(known)} classes in the mapping, {len(occurring)} with images",
            fix="complete the images, or leave only the classes that occur in the mapping",
        )
    return classes


def _require_no_surplus(found: set[str], known: set[str], where: str, reference: str) -> None:
    """Raise an error if `where` has a wnid that `reference` lacks."""
    if surplus := sorted(found - known):
        raise InputError(
            f"{where} has the class {surplus[0]}, which {reference} lacks",
            expected=f"only the {len(known)} classes of {reference}",
            found=f"{len(surplus)} more: {', '.join(surplus[:5])}",
        )


def _require_same_images(stems: Sequence[str], solved: set[str], path: Path) -> None:
    """Raise an error unless val folder and ground truth name the same images, each once."""
    counts = Counter(stems)
    unsolved, absent = sorted(counts.keys() - solved), sorted(solved - counts.keys())
    repeated = sorted(stem for stem, count in counts.items() if count > 1)
    if not unsolved and not absent and not repeated:
        return
    example = (
        f"{unsolved[0]} has no row"
        if unsolved
        else f"{absent[0]} has no image"
        if absent
        else f"{repeated[0]} is the name of several"
    )
    raise InputError(
        f"the val folder and {path} do not name the same images",
        expected="one row per image",
        found=f"{len(unsolved)} images without a row, {len(absent)} rows without an image, "
        f"{len(repeated)} names of several images ({example})",
    )


def _require_same_classes(rows: Sequence[Listed], wnid_of: dict[str, str], path: Path) -> None:
    """Raise an error if an image is in the folder of another class than its ground truth says."""
    wrong = [row for row in rows if wnid_of[row.stem] != row.wnid]
    if wrong:
        raise InputError(
            f"{readable(wrong[0].path)} is in the folder of another class than {path} says",
            expected=wnid_of[wrong[0].stem],
            found=f"{wrong[0].wnid}; {len(wrong)} of {len(rows)} images differ",
            fix="sort the images again, or move the CSV elsewhere if the folders are right",
        )
