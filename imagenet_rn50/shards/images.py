"""The final JPEG bytes of a sample: inspected, repaired where a decoder would stumble.

`prepare` is the one place where they are made. A picture keeps its pixels unless it has to be
written anew (CMYK, a PNG in disguise) or is resized on request.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image

from imagenet_rn50.jpeg_header import JpegError, is_jpeg, read_header
from imagenet_rn50.shards.options import PackOptions

# A decoded picture takes 3 bytes a pixel in every worker; a JPEG of a few KB can claim 65,535 px
# squared, that is 13 GB.
MAX_PIXELS = 100_000_000
_REPAIR_QUALITY = 95


class BadPictureError(ValueError):
    """The picture cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Prepared:
    """What is packed of a picture.

    Args:
        jpeg: The final bytes.
        width: In pixels.
        height: In pixels.
        changes: What was done to it beyond what the options ask of every picture, in words.
    """

    jpeg: bytes
    width: int
    height: int
    changes: tuple[str, ...]


def prepare(raw: bytes, options: PackOptions) -> Prepared:
    """Makes the bytes that are packed from the bytes of the source.

    Args:
        raw: The file as the source has it.
        options: Whether to decode, resize, add restart markers.

    Raises:
        BadPictureError: When it cannot be decoded, or is too large to be.
    """
    if not is_jpeg(raw):
        return _rewrite(raw, "not a JPEG")
    try:
        header = read_header(raw)
    except JpegError as error:
        raise BadPictureError(str(error)) from None
    _require_sane_size(header.width, header.height)
    if header.color_space in {"cmyk", "ycck"}:
        return _rewrite(raw, header.color_space.upper())
    if options.check == "decode":
        _decode(raw)
    return Prepared(jpeg=raw, width=header.width, height=header.height, changes=())


def _require_sane_size(width: int, height: int) -> None:
    """Refuses decompression bombs before anything is decoded."""
    if not 0 < width * height <= MAX_PIXELS:
        raise BadPictureError(f"{width}x{height} pixels; up to {MAX_PIXELS:,} are accepted")


def _decode(raw: bytes) -> Image.Image:
    """Decodes a picture whole.

    Raises:
        BadPictureError: When it is of no known format, too large, truncated or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(raw), formats=("JPEG", "PNG"))
            _require_sane_size(*picture.size)
            picture.load()
    except BadPictureError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadPictureError(f"cannot be decoded: {error}") from None
    return picture


def _rewrite(raw: bytes, reason: str) -> Prepared:
    """Writes a picture anew as an RGB JPEG of high quality."""
    picture = _decode(raw).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=_REPAIR_QUALITY, subsampling=0)
    return Prepared(
        jpeg=buffer.getvalue(),
        width=picture.width,
        height=picture.height,
        changes=(f"{reason}: written anew as an RGB JPEG of quality {_REPAIR_QUALITY}",),
    )
