"""Opening what somebody uploaded: any mode becomes RGB as a person would expect to see it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 50_000_000  # a 48-megapixel phone's; 150 MB as RGB, four times that while converted
MAX_ASPECT_RATIO = 32  # processors resize by the short side: the long one grows with the ratio

# What cameras, phones and browsers write. Others are parsers that nobody needs here: Pillow hands
# EPS to Ghostscript, for one.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO")

Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow's own guard: it raises above twice this

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(Exception):
    """A picture cannot be used; the text is a plain sentence for the person who uploaded it."""


def open_picture(path: str | Path) -> Image.Image:
    """Opens a picture: upright, RGB, 8 bits a channel, its transparent parts white.

    Of an animation, the first frame. The size is checked in the header, before a pixel is decoded.
    Of a very elongated picture, the center: the model's central crop shows no more of it.

    Args:
        path: The file.

    Returns:
        An RGB picture.

    Raises:
        PictureError: When it is gone, no picture, too large, or damaged.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise PictureError(_too_large())
            picture.load()
            is_16_bit = picture.mode.startswith("I;16") or _is_deep_pgm(picture)
            return _to_rgb(_center(_upright(picture)), is_16_bit)
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError("This picture is no longer kept; please upload it again.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError(_too_large()) from None
    except UnidentifiedImageError:
        raise PictureError(
            "This file is no picture that can be read here. JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF "
            "and JPEG 2000 can."
        ) from None
    except Exception as error:  # a decoder that meets damage raises anything
        raise PictureError("This picture is damaged or cut off; it cannot be read.") from error


def _too_large() -> str:
    return f"This picture is too large: at most {MAX_PIXELS // 1_000_000} megapixels can be read."


def _upright(picture: Image.Image) -> Image.Image:
    """Turns a picture by its EXIF orientation, as transformers does; damaged EXIF turns nothing."""
    try:
        turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF makes Pillow raise anything
        return picture
    return picture if turn is None else picture.transpose(turn)


def _center(picture: Image.Image) -> Image.Image:
    """Cuts equally many squares off both ends of a picture beyond `MAX_ASPECT_RATIO`.

    Each becomes a square when the short side is resized, so a central crop stays where it was.
    """
    short, long = sorted(picture.size)
    cut_off = short * max(0, (long // short - MAX_ASPECT_RATIO) // 2)
    if cut_off == 0:
        return picture
    x, y = (cut_off, 0) if picture.width > picture.height else (0, cut_off)
    return picture.crop((x, y, picture.width - x, picture.height - y))


def _is_deep_pgm(picture: Image.Image) -> bool:
    """Says whether a picture is a PGM of over 8 bits: Pillow scales it to 65535, but calls it I."""
    return (picture.format, picture.mode) == ("PPM", "I")


def _to_rgb(picture: Image.Image, is_16_bit: bool) -> Image.Image:
    """Converts any mode to RGB; what is transparent shows a white page behind it."""
    if is_16_bit:
        return _gray(np.asarray(picture) // 257)
    if picture.mode in {"I", "F"}:
        return _gray(_stretched(np.array(picture, dtype=np.float32)))
    if picture.has_transparency_data:
        page = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(page, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _stretched(values: np.ndarray) -> np.ndarray:
    """Stretches values of unknown range, as in scientific TIFFs, to [0, 255]; in place."""
    np.nan_to_num(values, copy=False, posinf=0, neginf=0)
    low, high = values.min(), values.max()
    if high > low:
        values /= max(abs(low), abs(high))  # or the difference of two large ones is inf
        low, high = values.min(), values.max()
        values -= low
        values *= 255 / (high - low)
        return np.round(values, out=values)
    return np.zeros_like(values)


def _gray(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
