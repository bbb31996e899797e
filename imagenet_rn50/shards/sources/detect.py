"""Detect the layout of a source and list its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from imagenet_rn50.shards.holdout import hold_out, require_fraction
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION
from imagenet_rn50.shards.sources.base import Source
from imagenet_rn50.shards.sources.class_folders import describe, is_imagefolder, read_imagefolder
from imagenet_rn50.shards.sources.folders import is_kaggle, read_kaggle, split_folders
from imagenet_rn50.shards.sources.official import is_official, read_official
from imagenet_rn50.shards.sources.parquet import is_parquet, read_parquet
from imagenet_rn50.shards.sources.parquet_columns import ColumnOptions
from imagenet_rn50.shards.sources.remote import read_remote
from imagenet_rn50.shards.sources.shards import is_shards, read_shards
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.formatting import quoted, shortened
from imagenet_rn50.utils.storage import is_address

Layout = Literal["kaggle", "official", "parquet", "imagefolder", "shards"]

_LAYOUTS: dict[str, tuple[Callable[[Path], bool], Callable[[Path, bool], Source]]] = {
    "kaggle": (is_kaggle, read_kaggle),
    "official": (is_official, read_official),
    "parquet": (is_parquet, read_parquet),
    "imagefolder": (is_imagefolder, read_imagefolder),
    "shards": (is_shards, read_shards),
}


def read_source(
    root: Path | str,
    layout: str | None = None,
    *,
    train_only: bool = False,
    holdout: float | None = None,
    seed: int = 0,
    cache: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_names: Path | None = None,
) -> Source:
    """List the images and classes of a source.

    Args:
        root: The folder that holds it: a path, or an address.
        layout: How it is laid out; None to find out.
        train_only: Whether to leave out its validation images, or do without.
        holdout: Fraction of the training images of each class that becomes the validation split, in
            (0, 1); None to validate on the source's validation images.
        seed: Seed of the choice of these images.
        cache: Where remote shards are kept on this machine.
        image_column: The column of images in parquet files; None to find it by its type.
        label_column: The column of labels in parquet files; None to find it by its type.
        label_names: File with the name of each label in parquet files, a line each; None for the
            names that they have.

    Raises:
        InputError: When the folder is missing or empty, is laid out in no way that is known or in
            several, has no validation images and nobody said that it may, has some that a hold-out
            would replace.
    """
    column_options = ColumnOptions(image_column, label_column, label_names)
    require_fraction("--holdout", holdout)
    if is_address(root):
        source = read_remote(
            str(root),
            layout,
            train_only,
            cache=cache,
            column_options=column_options,
            allow_test=holdout is None,
        )
    else:
        folder = _require_folder(Path(root))
        name = layout or _layout_of(folder)
        read = _LAYOUTS[name][1]
        if name == "shards":
            read = partial(read_shards, cache=cache)
        elif name == "parquet":
            read = partial(read_parquet, column_options=column_options, allow_test=holdout is None)
        source = read(folder, train_only)
    if source.layout != "parquet":
        _require_no_columns(source, column_options)
    if holdout is not None:
        source = hold_out(source, holdout, seed)
    elif not train_only and VALIDATION not in source.splits:
        raise _without_validation(source)
    _require_classes_of_training(source)
    return replace(source, notes=source.notes + _notes(source))


_DIGITS = ("digits", "source")  # where `make demo` writes them, and the documentation reads them


def _require_folder(root: Path) -> Path:
    """Return a folder that is not empty.

    Raises:
        InputError: When it is no folder, or empty.
    """
    if not root.is_dir():
        fix = None
        if root.exists():
            fix = f"name the folder that holds it: --source {quoted(root.parent)}"
        elif root.parts[-2:] == _DIGITS:
            fix = "make demo, which writes the digits there"
        raise InputError(
            f"the source {root} is not a folder",
            expected="a folder of images",
            found="a file" if root.exists() else "nothing of that name",
            fix=fix,
        )
    if not any(root.iterdir()):
        raise InputError(f"the source {root} is empty", expected="a folder of images")
    return root


def _require_no_columns(source: Source, column_options: ColumnOptions) -> None:
    """Raise an error if something is said of the columns of a source without any."""
    options = ("--image-column", "--label-column", "--label-names")
    for option, value in zip(options, column_options, strict=True):
        if value is not None:
            raise InputError(
                f"{option} {value} needs a source in parquet files",
                found=f"the layout {source.layout} of {source.root}",
                fix="leave it out",
            )


def _layout_of(root: Path) -> str:
    """Detect the layout of a source.

    Raises:
        InputError: When it is laid out in no way that is known, or in several.
    """
    fitting = [name for name, (fits, _) in _LAYOUTS.items() if fits(root)]
    if {"official", "parquet"} & set(fitting) and not split_folders(root):
        fitting = [name for name in fitting if name != "imagefolder"]  # just folders of images
    if len(fitting) > 1 and "imagefolder" in fitting and _has_only_files(root):
        fitting.remove("imagefolder")  # but files named train/0000.tar or train/0000.parquet
    if len(fitting) > 1 and "shards" in fitting:
        fitting.remove("shards")  # they lie beside what is laid out, and are named as not packed
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InputError(
            f"the source {root} is laid out in several ways at once",
            expected="one of them, since the others would not be packed",
            found=", ".join(fitting),
            fix=f"name one: --layout {fitting[0]}",
        )
    below = [
        path
        for path in sorted(root.iterdir())
        if path.is_dir() and any(fits(path) for fits, _ in _LAYOUTS.values())
    ]
    raise InputError(
        f"the source {root} is laid out in no way that is known",
        expected="ILSVRC/Data/CLS-LOC/ (Kaggle), train/<class>/ and val/<class>/ or just "
        "<class>/ for at least two classes (ImageFolder), "
        "ILSVRC2012_img_train.tar (official), data/train-*.parquet (Hugging Face) or a manifest",
        found=describe(root),
        fix=f"--source {quoted(below[0])}"
        if len(below) == 1
        else "give the folder that holds them",
    )


def _has_only_files(root: Path) -> bool:
    """Return whether the folders of the splits have no folders of classes."""
    folders = split_folders(root).values()
    return bool(folders) and not any(p.is_dir() for folder in folders for p in folder.iterdir())


def _without_validation(source: Source) -> InputError:
    """Return the refusal of a source without validation images."""
    # Folders beside the splits first: one of them may be the validation split, by another name.
    entries = sorted(source.unpacked, key=lambda entry: (not entry.path.endswith("/"), entry.path))
    found = ", ".join(f"{entry.path} ({entry.reason})" for entry in entries[:3])
    return InputError(
        f"the source {source.root} has no validation images",
        expected="a split to validate on, in val/, validation/ or valid/ or as the layout names it",
        found=f"training images, and {found or 'nothing else'}",
        fix="add it (a split of another name: rename it to val/), or take it out of the training "
        "images: --holdout 0.1, or pack these alone: --train-only",
    )


def _require_classes_of_training(source: Source) -> None:
    """Raise an error if validation has a class that training lacks: no model could learn it."""
    train, validation = (
        {image.label for image in source.splits.get(split, [])} for split in (TRAIN, VALIDATION)
    )
    if train and (surplus := sorted(validation - train)):
        wnids = [source.classes.wnids[label] for label in surplus]
        raise InputError(
            f"validation has the class {wnids[0]}, which the training images lack",
            expected=f"only the {len(train)} classes of training",
            found=f"{len(wnids)} more: {', '.join(wnids[:5])}",
        )


def _notes(source: Source) -> list[str]:
    """Return what to know of a source whose splits are not of the same classes."""
    if TRAIN not in source.splits:
        return ["there are no training images: only validation is packed"]
    if VALIDATION not in source.splits:
        return ["there is no validation split: only training images are packed"]
    labels = {image.label for image in source.splits[VALIDATION]}
    missing = [wnid for wnid, label in source.classes.index_of.items() if label not in labels]
    if not missing:
        return []
    return [
        f"validation has no images of {len(missing)} of the classes of training: "
        f"{shortened(missing)}"
    ]
