"""Example images for the Space: some validation images, with their classes as file names.

OUT/
  examples.json       data set, split and, of each image, file, key and class
  examples/
    1 tench.jpg       upright RGB without metadata, at most 512 px

Images of ImageNet are left out: its terms do not allow publishing them.
"""

from __future__ import annotations

import io
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageOps

from imagenet_rn50.classes import Classes
from imagenet_rn50.publishing.layout import EXAMPLES, EXAMPLES_SOURCE
from imagenet_rn50.publishing.validation_images import ValidationImages
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.utils.errors import InputError, first_line
from imagenet_rn50.utils.files import read_json, read_text, write_bytes, write_json
from imagenet_rn50.utils.formatting import counted, first_name
from imagenet_rn50.utils.logging import logger

_DEFAULT_NUMBER = 6
_MAX_SIDE = 512  # px
_QUALITY = 95
_MAX_NAME = 60  # characters
_NOT_IN_NAMES = re.compile(r"[^\w \-]+")


def require_publishable(images: ValidationImages) -> None:
    """Check that a data set is not ImageNet or a part of it, whose terms forbid publishing images.

    Raises:
        InputError: If it has classes of ImageNet-1k, or it or what it was selected from is named
            after ImageNet.
    """
    named = [name for name in _lineage(images.manifest) if re.search("imagenet|ilsvrc", name, re.I)]
    shared = len(set(images.classes.wnids) & _imagenet1k_wnids())
    if named or shared:
        found = f"the data set {named[0]}" if named else f"{shared} classes of ImageNet-1k"
        raise InputError(
            "images of ImageNet must not be published as examples",
            expected="a data set whose terms allow it",
            found=found,
            fix="--examples 0; the Space shows photos of its own",
        )


def num_examples(images: ValidationImages, asked: int | None) -> int:
    """Return how many examples to write.

    Args:
        images: The validation images.
        asked: Value of --examples; None for the default, which is none if the terms of the data
            set do not allow publishing its images.

    Raises:
        InputError: If examples were asked for, and the terms do not allow it.
    """
    if asked == 0:
        return 0
    try:
        require_publishable(images)
    except InputError as error:
        if asked is not None:
            raise
        logger.info(f"no {EXAMPLES}/: {first_line(error)}")
        return 0
    return _DEFAULT_NUMBER if asked is None else asked


def _lineage(manifest: Manifest) -> list[str]:
    """Return the names of a data set and of those that it was selected from."""
    names, options = [manifest.dataset], manifest.options
    while isinstance(parent := options.get("parent"), dict):
        names.append(str(parent.get("dataset", "")))
        options = parent.get("options", {})
    return names


def _imagenet1k_wnids() -> set[str]:
    """Return the wnids of ImageNet-1k's classes, from timm."""
    timm = find_spec("timm")  # importing it takes seconds
    assert timm is not None
    assert timm.origin is not None
    path = Path(timm.origin).parent / "data" / "_info" / "imagenet_synsets.txt"
    return set(read_text(path).split())


def write_examples(images: ValidationImages, folder: Path, number: int) -> None:
    """Write example images and where they come from.

    Args:
        images: The validation images.
        folder: The export.
        number: Number of examples; fewer if there are fewer images.
    """
    indices = images.choose(number, "examples")
    (folder / EXAMPLES).mkdir(exist_ok=True)
    digits = len(str(len(indices)))
    listed = []
    contents = zip(indices.tolist(), images.read(indices), strict=True)
    for position, (index, content) in enumerate(contents, start=1):
        label = int(images.split.labels[index])
        file = f"{position:0{digits}d} {_file_name(images.classes, label)}.jpg"
        write_bytes(folder / EXAMPLES / file, small_jpeg(content))
        listed.append(
            {"file": file, "key": images.split.key_of(index), "class": images.classes.labels[label]}
        )
    write_json(folder / EXAMPLES_SOURCE, images.source | {"images": listed})
    logger.info(
        f"copied {counted(len(listed), 'validation image')} into {EXAMPLES}/, which push "
        "publishes; --examples 0 for none"
    )


def _file_name(classes: Classes, label: int) -> str:
    """Return the first name of a class, without characters that file names may not have."""
    name = _NOT_IN_NAMES.sub("_", first_name(classes.labels[label])).strip()
    return name[:_MAX_NAME].strip() or classes.wnids[label]


def small_jpeg(content: bytes) -> bytes:
    """Return an image as an upright RGB JPEG of at most 512 px, without metadata."""
    with Image.open(io.BytesIO(content)) as image:
        small = ImageOps.exif_transpose(image).convert("RGB")
    small.thumbnail((_MAX_SIDE, _MAX_SIDE))
    buffer = io.BytesIO()
    small.info.clear()  # Pillow would write comments, profiles and EXIF again
    small.save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()


def copy_added_examples(earlier: Path, folder: Path) -> None:
    """Copy the example images that people added to an earlier export.

    Args:
        earlier: The earlier export.
        folder: The new one.

    Raises:
        InputError: If one has the name of a new example.
    """
    if not (earlier / EXAMPLES).is_dir():
        return
    source = earlier / EXAMPLES_SOURCE
    written = {entry["file"] for entry in read_json(source)["images"]} if source.is_file() else ()
    for path in sorted((earlier / EXAMPLES).iterdir()):
        if path.name in written:
            continue
        target = folder / EXAMPLES / path.name
        if target.exists():
            raise InputError(
                f"{path} was not written by an export, and a new example has its name",
                fix="rename or remove it",
            )
        target.parent.mkdir(exist_ok=True)
        shutil.copy2(path, target)
