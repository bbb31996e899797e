"""What a JPEG says about itself before its first scan, read without decoding.

Packing looks here for pictures that need a repair, and for the size of all others.

How a JPEG is laid out: its size, its MCUs, its restart interval, where the coded data begins.

Read for every picture of every epoch, in some microseconds, so that a crop can be drawn before
anything is decoded. `jpeg_header` tells packing other things, once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from imagenet_rn50.jpeg.orientation import is_metadata, is_transposed, read_orientation

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


SOI, EOI, SOS, DRI = 0xD8, 0xD9, 0xDA, 0xDD
RST0 = 0xD0
APP0, APP1, APP9, APP14 = 0xE0, 0xE1, 0xE9, 0xEE
TABLE_NAME = b"restart offsets\0"

_COM, _APP15, _BASELINE = 0xFE, 0xEF, 0xC0
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True)
class Layout:
    """What stands before the coded data of a JPEG.

    Args:
        height: Height of the picture, px.
        width: Width of the picture, px.
        size_at: Offset of the two sizes, which are uint16, in the frame header.
        mcu: Height and width of an MCU in px; None when the picture is not cut, for it is unusual.
        margin: How far outside a box decoding it may look, px downwards and sideways.
        interval: MCUs between restart markers; 0 when there are none.
        scan: Offset of the first coded byte.
        kept: Start and stop of the parts of the header that decoding needs.
        table: Start and stop of the entries of the offset table; None when there is none.
        orientation: How to turn the stored pixels upright, see `orientation`; 1 leaves them.
    """

    height: int
    width: int
    size_at: int
    mcu: tuple[int, int] | None
    margin: tuple[int, int]
    interval: int
    scan: int
    kept: list[tuple[int, int]]
    table: tuple[int, int] | None
    orientation: int

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width of the upright picture, px."""
        size = self.height, self.width
        return size[::-1] if is_transposed(self.orientation) else size

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and of columns of MCUs, of a picture that can be cut."""
        assert self.mcu is not None
        return -(-self.height // self.mcu[0]), -(-self.width // self.mcu[1])


def read_layout(jpeg: bytes) -> Layout:
    """Reads a JPEG's header, up to the coded data of its first scan.

    Raises:
        ValueError: When the bytes are not a JPEG with a size and a scan.
    """
    frame: tuple[int, int, int] | None = None  # marker, start and stop of the segment's content
    scan_components = interval = 0
    table = None
    kept = [(0, 2)]
    metadata = []
    for marker, start, stop in _segments(jpeg):
        if marker in _FRAMES:
            if frame is not None:
                raise ValueError("the JPEG has two frames")
            frame = (marker, start, stop)
        elif marker == DRI:
            interval = int.from_bytes(jpeg[start:stop])
        elif marker == APP9 and jpeg.startswith(TABLE_NAME, start, stop):
            table = (start + len(TABLE_NAME), stop)
        elif marker == APP1 and is_metadata(jpeg, start):
            metadata.append(jpeg[start:stop])
        elif marker == SOS:
            scan_components = jpeg[start] if stop > start else 0
        if marker in {APP0, APP14} or not (APP0 <= marker <= _APP15 or marker == _COM):
            kept.append((start - 4, stop))
    if frame is None:
        raise ValueError("the JPEG has no frame header before its scan")
    height, width, mcu, margin = _read_frame(jpeg, *frame, scan_components)
    return Layout(
        height,
        width,
        frame[1] + 1,
        mcu,
        margin,
        interval,
        kept[-1][1],
        kept,
        table,
        read_orientation(metadata),
    )


def _segments(jpeg: bytes) -> list[tuple[int, int, int]]:
    """Returns marker, start and stop of the content of each segment, the first scan's the last."""
    if jpeg[:2] != b"\xff\xd8":
        raise ValueError("the bytes are not a JPEG")
    segments = []
    at, end = 2, len(jpeg)
    while at + 4 <= end:
        marker = jpeg[at + 1]
        if marker == jpeg[at] == 0xFF:  # a fill byte, which may stand before any marker
            at += 1
            continue
        start, stop = at + 4, at + 2 + (jpeg[at + 2] << 8 | jpeg[at + 3])
        if jpeg[at] != 0xFF or marker < 0xC0 or stop < start or stop > end:
            raise ValueError(f"the JPEG is damaged at byte {at}")
        if RST0 <= marker <= EOI:
            raise ValueError(f"the JPEG has an unexpected marker at byte {at}")
        segments.append((marker, start, stop))
        if marker == SOS:
            return segments
        at = stop
    raise ValueError("the JPEG ends before its scan")


def _read_frame(
    jpeg: bytes, marker: int, start: int, stop: int, scan_components: int
) -> tuple[int, int, tuple[int, int] | None, tuple[int, int]]:
    """Returns height, width, size of an MCU (None when unusual) and margin, of a frame header."""
    if stop - start < 6:
        raise ValueError("the JPEG's frame header is too short")
    precision, height, width, num_components = struct.unpack_from(">BHHB", jpeg, start)
    if height == 0 or width == 0:
        raise ValueError("the JPEG's frame header states no size")
    whole = (height, width, None, (0, 0))
    usual = marker == _BASELINE and precision == 8 and num_components in {1, 3}
    if not usual or scan_components != num_components or stop - start != 6 + 3 * num_components:
        return whole
    if num_components == 1:  # a scan of one component has MCUs of one block, whatever its factors
        return height, width, (8, 8), (0, 0)
    factors = [jpeg[start + 7 + 3 * i] for i in range(num_components)]
    across, down = [f >> 4 for f in factors], [f & 15 for f in factors]
    if factors[1] != factors[2] or not {*across, *down} <= {1, 2, 4}:
        return whole
    # Upsampling looks one chroma sample to each side: that many px, and as many again to be safe.
    margin = tuple(2 * max(f) if min(f) < max(f) else 0 for f in (down, across))
    return height, width, (8 * max(down), 8 * max(across)), (margin[0], margin[1])
