"""Open uploaded files: convert any format and mode to the RGB image that a viewer shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = (
    50_000_000  # fits 48-megapixel phones; 150 MB as RGB, four times that during conversion
)
MAX_ASPECT_RATIO = 32  # processors resize the short side, so the long side grows with the ratio

# What cameras, phones and browsers write. Other formats only add attack surface: Pillow passes EPS
# to Ghostscript, for example.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO")

Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow raises above twice this value

_ORIENTATION = 0x0112
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(Exception):
    """The image cannot be used. The message is shown to the person who uploaded it."""


def open_image(path: str | Path) -> Image.Image:
    """Open an image as upright 8-bit RGB on a white background.

    Animations give their first frame. The size is checked in the header, before any pixel is
    decoded. Very elongated images give their center, which the model's center crop is taken from.

    Args:
        path: The uploaded file.

    Returns:
        An RGB image.

    Raises:
        ImageError: If the file is missing, not an image, too large or damaged.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(_too_large())
            image.load()
            is_16_bit = image.mode.startswith("I;16") or _is_deep_pgm(image)
            return _to_rgb(_center(_upright(image)), is_16_bit)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(
            "This image was deleted from the server. Please upload it again."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(_too_large()) from None
    except UnidentifiedImageError:
        raise ImageError(
            "This file is not a supported image. Supported formats: JPEG, PNG, WebP, AVIF, GIF, "
            "BMP, TIFF and JPEG 2000."
        ) from None
    except Exception as error:  # decoders raise anything on damaged files
        raise ImageError("This image is damaged or incomplete.") from error


def _too_large() -> str:
    return f"This image is too large. The limit is {MAX_PIXELS // 1_000_000} megapixels."


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, as transformers does; ignore damaged EXIF."""
    try:
        exif = image.getexif()
        transpose = _TRANSPOSES.get(exif.get(_ORIENTATION, 1))
        if transpose is not None:
            del exif[_ORIENTATION]
            exif.tobytes()  # transformers writes it anew, and fails where Pillow cannot
    except Exception:  # damaged EXIF makes Pillow raise anything
        return image
    return image if transpose is None else image.transpose(transpose)


def _center(image: Image.Image) -> Image.Image:
    """Crop both ends of an image by whole squares to about `MAX_ASPECT_RATIO`.

    Squares keep the center crop where it was: resizing the short side maps them to whole pixels.
    """
    short, long = sorted(image.size)
    margin = short * max(0, (long // short - MAX_ASPECT_RATIO) // 2)
    if margin == 0:
        return image
    x, y = (margin, 0) if image.width > image.height else (0, margin)
    return image.crop((x, y, image.width - x, image.height - y))


def _is_deep_pgm(image: Image.Image) -> bool:
    """Return whether an image is a PGM of more than 8 bits: mode I, scaled by Pillow to 65535."""
    return (image.format, image.mode) == ("PPM", "I")


def _to_rgb(image: Image.Image, is_16_bit: bool) -> Image.Image:
    """Convert any mode to RGB, with transparent areas on white."""
    if is_16_bit:
        return _gray(np.asarray(image) // 257)
    if image.mode in {"I", "F"}:
        return _gray(_rescale(np.array(image, dtype=np.float32)))
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _rescale(values: np.ndarray) -> np.ndarray:
    """Scale values of unknown range (scientific TIFFs) to [0, 255], in place."""
    np.nan_to_num(values, copy=False, posinf=0, neginf=0)
    low, high = values.min(), values.max()
    if high > low:
        values /= max(abs(low), abs(high))  # avoids overflow of high - low
        low, high = values.min(), values.max()
        values -= low
        values *= 255 / (high - low)
        return np.round(values, out=values)
    return np.zeros_like(values)


def _gray(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
