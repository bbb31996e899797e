"""Finds out how a source is laid out, and lists it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from imagenet_rn50.errors import InputError
from imagenet_rn50.shards.sources.base import Source
from imagenet_rn50.shards.sources.folders import (
    is_imagefolder,
    is_kaggle,
    read_imagefolder,
    read_kaggle,
)
from imagenet_rn50.shards.sources.official import is_official, read_official
from imagenet_rn50.shards.sources.parquet import is_parquet, read_parquet

Layout = Literal["kaggle", "official", "parquet", "imagefolder"]

# Tried in this order; the first that fits is taken.
_LAYOUTS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], Source]]] = {
    "kaggle": (is_kaggle, read_kaggle),
    "official": (is_official, read_official),
    "parquet": (is_parquet, read_parquet),
    "imagefolder": (is_imagefolder, read_imagefolder),
}


def read_source(root: Path, layout: str | None = None) -> Source:
    """Lists the pictures and classes of a source.

    Args:
        root: The folder that holds it.
        layout: How it is laid out; None to find out.

    Raises:
        InputError: When the folder is missing or empty, or is laid out in no way that is known.
    """
    if not root.is_dir():
        raise InputError(
            f"the source {root} is not a folder",
            expected="a folder of pictures",
            found="a file" if root.exists() else "nothing of that name",
        )
    if not any(root.iterdir()):
        raise InputError(f"the source {root} is empty", expected="a folder of pictures")
    for name, (fits, read) in _LAYOUTS.items():
        if layout == name or (layout is None and fits(root)):
            return read(root)
    raise InputError(
        f"the source {root} is laid out in no way that is known",
        expected="ILSVRC/Data/CLS-LOC/ (Kaggle), train/<wnid>/ and val/<wnid>/ (ImageFolder), "
        "ILSVRC2012_img_train.tar (official) or data/train-*.parquet (Hugging Face)",
        found=", ".join(sorted(path.name for path in root.iterdir())[:5]),
        fix="give the folder that holds them",
    )
