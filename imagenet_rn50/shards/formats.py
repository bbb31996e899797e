"""Image formats other than JPEG: which are read, and what is taken of them.

Pillow decodes all of these within the process. EPS is missing because Pillow hands it to
Ghostscript, an external program that interprets PostScript; formats that Pillow recognizes only
(HDF5, GRIB, WMF) and those of measured data (FITS, SPIDER) are missing because they have no pixels
of known range.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "PPM", "TGA", "ICO",
    "CUR", "ICNS", "PCX", "DCX", "DDS", "SGI", "SUN", "QOI", "PSD", "XBM", "XPM",
)  # fmt: skip


def open_image(content: bytes | Path | str) -> Image.Image:
    """Read the header of an image, by its content; pixels are decoded later.

    Args:
        content: The image, or the path of its file.

    Raises:
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: When it is no image.
    """
    source: IO[bytes] | Path | str = io.BytesIO(content) if isinstance(content, bytes) else content
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(source, formats=FORMATS)


def has_image_suffix(path: str) -> bool:
    """Return whether a file is named as an image of a format that is read."""
    return Image.registered_extensions().get(os.path.splitext(path)[1].lower()) in FORMATS


def is_image(content: bytes | Path | str) -> bool:
    """Return whether an image, or the file at a path, begins as one of the formats that are read.

    A file that may not be read counts as one: whoever reads it will stop.
    """
    try:
        with open_image(content):
            return True
    except PermissionError:
        return True
    except Exception:  # decoders raise whatever damaged headers make them raise
        return False


def describe(image: Image.Image) -> str:
    """Return the format of an image, and what of it is not taken."""
    dropped = []
    try:
        if (frames := getattr(image, "n_frames", 1)) > 1:
            dropped.append(f"the first of {frames} frames")
    except Exception:  # decoders raise whatever damaged headers make them raise
        dropped.append("the first frame, for others are damaged")
    if image.has_transparency_data:
        dropped.append("without its transparency")
    if image.mode.startswith("I"):
        dropped.append("16 bits of gray scaled to 8")
    return ", ".join([image.format or "", *dropped])


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode of up to 16 bits per channel to RGB, as Pillow and torchvision do.

    Raises:
        ValueError: When the range of its values is not known.
    """
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    values = np.asarray(image)  # 16 bits of gray, which Pillow would clip at 255
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"pixels of mode {image.mode}, whose range is not known")
    return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
