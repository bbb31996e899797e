"""What a JPEG says about itself before its first scan, read without decoding.

Packing looks here for pictures that need a repair, and for the size of all others.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from imagenet_rn50.orientation import is_metadata, read_orientation

_START = b"\xff\xd8"
_EXIF = b"Exif\0\0"
_ADOBE = b"Adobe"
_APP1, _APP14, _RESTART_INTERVAL, _START_OF_SCAN, _END_OF_IMAGE = 0xE1, 0xEE, 0xDD, 0xDA, 0xD9
# Frame headers: baseline, extended, progressive, lossless, ... and their arithmetic twins.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_WITHOUT_CONTENT = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, RST0..7, SOI

ColorSpace = Literal["gray", "rgb", "ycc", "cmyk", "ycck"]


class JpegError(ValueError):
    """The bytes are not a JPEG, or end before its first scan."""


@dataclass(frozen=True)
class JpegHeader:
    """What the markers before the first scan say.

    Args:
        width: In pixels.
        height: In pixels.
        num_components: 1 gray, 3 colour, 4 CMYK or YCCK.
        color_space: As libjpeg takes it from the number of components and Adobe's marker.
        progressive: Whether the picture comes in several scans of growing quality.
        restart_interval: MCUs between two restart markers; 0 without them.
        exif: (begin, end) of the EXIF segment in the file, its marker included; None without one.
        metadata: (begin, end) of all EXIF and XMP segments, likewise.
        orientation: How to turn the stored pixels upright, see `orientation`; 1 leaves them.
        scan: Offset of the first scan's marker in the file.
    """

    width: int
    height: int
    num_components: int
    color_space: ColorSpace
    progressive: bool
    restart_interval: int
    exif: tuple[int, int] | None
    metadata: tuple[tuple[int, int], ...]
    orientation: int
    scan: int


def is_jpeg(content: bytes) -> bool:
    """Says whether the bytes begin as a JPEG does."""
    return content[:2] == _START


def read_header(content: bytes) -> JpegHeader:
    """Reads the markers of a JPEG up to its first scan.

    Args:
        content: The file, or its beginning.

    Raises:
        JpegError: When it is not a JPEG, or ends before its first scan.
    """
    if not is_jpeg(content):
        raise JpegError(f"not a JPEG: it begins with {content[:4].hex(' ') or 'nothing'}")
    frame: tuple[int, int] | None = None  # marker, offset of its content
    adobe_transform: int | None = None
    exif: tuple[int, int] | None = None
    metadata: list[tuple[int, int]] = []
    restart_interval = 0
    position = 2
    while True:
        marker, begin, end = _segment(content, position)
        if marker == _START_OF_SCAN:
            break
        if marker in _FRAMES:
            frame = marker, begin
        elif marker == _RESTART_INTERVAL:
            (restart_interval,) = _unpack(">H", content, begin)
        elif marker == _APP1 and is_metadata(content, begin):
            metadata.append((begin - 4, end))
            if exif is None and content.startswith(_EXIF, begin):
                exif = begin - 4, end
        elif marker == _APP14 and content.startswith(_ADOBE, begin):
            (adobe_transform,) = _unpack(">B", content, begin + 11)
        position = end
    if frame is None:
        raise JpegError("a JPEG without a frame header")
    height, width, num_components = _unpack(">HHB", content, frame[1] + 1)
    return JpegHeader(
        width=width,
        height=height,
        num_components=num_components,
        color_space=_color_space(num_components, adobe_transform),
        progressive=frame[0] in _PROGRESSIVE,
        restart_interval=restart_interval,
        exif=exif,
        metadata=tuple(metadata),
        orientation=read_orientation([content[begin + 4 : end] for begin, end in metadata]),
        scan=begin - 4,
    )


def _segment(content: bytes, position: int) -> tuple[int, int, int]:
    """Returns the next marker from `position` on and the (begin, end) of its content."""
    while True:
        position = content.find(b"\xff", position)
        if position < 0 or position + 1 >= len(content):
            raise JpegError("a JPEG that ends before its first scan")
        marker = content[position + 1]
        if marker == _END_OF_IMAGE:
            raise JpegError("a JPEG without a scan")
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker == 0x00 or marker in _WITHOUT_CONTENT:
            position += 2
        else:
            break
    (length,) = _unpack(">H", content, position + 2)
    return marker, position + 4, position + 2 + max(2, length)


def _unpack(layout: str, content: bytes, offset: int) -> tuple[int, ...]:
    """Unpacks big-endian numbers.

    Raises:
        JpegError: When the bytes end before.
    """
    try:
        return struct.unpack_from(layout, content, offset)
    except struct.error:
        raise JpegError("a JPEG that ends before its first scan") from None


def _color_space(num_components: int, adobe_transform: int | None) -> ColorSpace:
    """Returns the colour space that libjpeg assumes."""
    if num_components == 1:
        return "gray"
    if num_components == 4:
        return "ycck" if adobe_transform == 2 else "cmyk"
    return "rgb" if adobe_transform == 0 else "ycc"
