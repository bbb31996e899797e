"""EXIF orientation: how stored pixels must be flipped and transposed to be upright.

1 as stored          5 transpose
2 flip left-right    6 rotate 90 degrees clockwise
3 rotate 180         7 transpose along the other diagonal
4 flip top-bottom    8 rotate 90 degrees counterclockwise
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_ORIENTATION_TAG = 0x0112
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_TRANSPOSED = frozenset({5, 6, 7, 8})
_FLIPPED_LEFT_RIGHT = frozenset({2, 3, 6, 7})  # after transposing
_FLIPPED_TOP_BOTTOM = frozenset({3, 4, 7, 8})


def is_metadata(content: bytes, start: int) -> bool:
    """Return whether the content of an APP1 segment is EXIF or XMP."""
    return content.startswith((_EXIF, _XMP), start)


def read_orientation(segments: Sequence[bytes]) -> int:
    """Return the orientation that a JPEG's metadata states.

    Pillow parses it, as in `exif_transpose`, which transformers calls: so training agrees with the
    pipeline on odd and damaged metadata, too. XMP counts where EXIF states no orientation.

    Args:
        segments: Contents of the JPEG's EXIF and XMP segments, in their order.

    Returns:
        1 to 8; 1 where nothing valid is stated.
    """
    if not segments:
        return 1
    image = Image.Image()
    exif = [segment[len(_EXIF) :] for segment in segments if segment.startswith(_EXIF)]
    xmp = [segment[len(_XMP) :] for segment in segments if segment.startswith(_XMP)]
    if exif:
        image.info["exif"] = _EXIF + b"".join(exif)
    if xmp:
        image.info["xmp"] = xmp[-1]
    return orientation_of(image)


def orientation_of(image: Image.Image) -> int:
    """Return the orientation that an opened image's metadata states: 1 to 8, 1 where none is.

    As `exif_transpose` does, it removes the orientation and writes the rest anew. Where Pillow
    cannot write what it could read, an image stays as stored.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif = image.getexif()
            stated = exif.get(_ORIENTATION_TAG, 1)
            orientation = next((value for value in range(2, 9) if value == stated), 1)
            if orientation != 1:
                del exif[_ORIENTATION_TAG]
                exif.tobytes()
            return orientation
    except Exception:  # damaged metadata makes Pillow raise anything
        return 1


def is_transposed(orientation: int) -> bool:
    """Return whether height and width of the upright image are the stored width and height."""
    return orientation in _TRANSPOSED


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return an upright view of stored pixels, (H, W, C)."""
    if orientation in _TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in _FLIPPED_LEFT_RIGHT:
        pixels = pixels[:, ::-1]
    if orientation in _FLIPPED_TOP_BOTTOM:
        pixels = pixels[::-1]
    return pixels


def stored_box(
    box: tuple[int, int, int, int], orientation: int, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return where a box of the upright image is in the stored one.

    Args:
        box: Top, left, height and width in the upright image, px.
        orientation: 1 to 8.
        size: Height and width of the upright image, px.

    Returns:
        Top, left, height and width in the stored image, px.
    """
    top, left, height, width = box
    if orientation in _FLIPPED_LEFT_RIGHT:
        left = size[1] - left - width
    if orientation in _FLIPPED_TOP_BOTTOM:
        top = size[0] - top - height
    if orientation in _TRANSPOSED:
        return left, top, width, height
    return top, left, height, width
