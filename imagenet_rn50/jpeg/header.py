"""The header of a JPEG, read without decoding: everything before the coded data of its first scan.

Packing reads it to find images that need repair, and their size. The loader reads it for every
image of every epoch, in some microseconds: crops are drawn from the size, and `crop.cut` copies
segments by the offsets found here, before anything is decoded.
"""

from __future__ import annotations

import struct
from typing import Literal, NamedTuple, TypeAlias

from imagenet_rn50.jpeg.orientation import is_metadata, is_transposed, read_orientation

SOI, EOI, SOS, DRI = 0xD8, 0xD9, 0xDA, 0xDD
RST0 = 0xD0
APP0, APP1, APP9, APP14 = 0xE0, 0xE1, 0xE9, 0xEE
TABLE_NAME = b"restart offsets\0"

_TEM, _APP15, _COM = 0x01, 0xEF, 0xFE
_EXIF, _ADOBE = b"Exif\0\0", b"Adobe"
# Frame headers: baseline, extended, progressive, lossless, ... and their arithmetic twins.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE, _PROGRESSIVE = 0xC0, frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_DROPPED = frozenset({*range(APP0, _APP15 + 1), _COM}) - {APP0, APP14}  # decoding ignores them

ColorSpace: TypeAlias = Literal["gray", "rgb", "ycc", "cmyk", "ycck"]


class JpegError(ValueError):
    """The bytes are not a JPEG, or its header is damaged."""


class JpegHeader(NamedTuple):
    """What the segments before the coded data state. Offsets are from the start of the file.

    Attributes:
        height: Height of the stored image, px.
        width: Width of the stored image, px.
        num_components: 1 gray, 3 color, 4 CMYK or YCCK.
        color_space: As libjpeg derives it from the number of components and Adobe's marker.
        progressive: Whether the image is coded in several scans of growing quality.
        restart_interval: MCUs between two restart markers; 0 without them.
        orientation: How to turn the stored pixels upright, see `orientation`; 1 leaves them.
        exif: (start, stop) of the EXIF segment, its marker included; None without one.
        metadata: (start, stop) of all EXIF and XMP segments, likewise.
        sos: Offset of the marker of the first scan.
        scan: Offset of the first coded byte.
        size_offset: Offset of height and width, both uint16, in the frame header.
        required: (start, stop) of the parts of the header that decoding needs.
        table: (start, stop) of the entries of the restart offset table; None without one.
        mcu: Height and width of an MCU, px; None where the image is unusual and never cut.
        margin: How many px outside a box decoding may read, downwards and sideways.
    """

    height: int
    width: int
    num_components: int
    color_space: ColorSpace
    progressive: bool
    restart_interval: int
    orientation: int
    exif: tuple[int, int] | None
    metadata: list[tuple[int, int]]
    sos: int
    scan: int
    size_offset: int
    required: list[tuple[int, int]]
    table: tuple[int, int] | None
    mcu: tuple[int, int] | None
    margin: tuple[int, int]

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width of the upright image, px."""
        size = self.height, self.width
        return size[::-1] if is_transposed(self.orientation) else size

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and of columns of MCUs, of an image that can be cut."""
        assert self.mcu is not None
        return -(-self.height // self.mcu[0]), -(-self.width // self.mcu[1])


def is_jpeg(content: bytes) -> bool:
    """Return whether the bytes begin as a JPEG does."""
    return content[:2] == b"\xff\xd8"


def read_header(jpeg: bytes, *, strict: bool = False) -> JpegHeader:
    """Read the header of a JPEG.

    Args:
        jpeg: The file, or its beginning up to the coded data.
        strict: Refuse damage that decoders skip: bytes between segments, lengths that do not fit,
            two frame headers, a size of 0. Required before anything is cut by these offsets.

    Raises:
        JpegError: If the bytes are not a JPEG, end before its first scan, or are damaged.
    """
    frame: tuple[int, int, int] | None = None  # marker, start and stop of the content
    restart_interval = 0
    table = adobe_transform = None
    required: list[tuple[int, int]] = [(0, 2)]
    metadata: list[tuple[int, int]] = []
    segments = _read_segments(jpeg, strict=strict)
    for marker, start, stop in segments:
        if marker not in _DROPPED:
            required.append((start - 4, stop))
        if marker in _FRAMES:
            if strict and frame is not None:
                raise JpegError("the JPEG has two frames")
            frame = marker, start, stop
        elif marker == DRI:
            restart_interval = int.from_bytes(jpeg[start : start + 2])
        elif marker == APP9 and jpeg.startswith(TABLE_NAME, start, stop):
            table = start + len(TABLE_NAME), stop
        elif marker == APP1 and is_metadata(jpeg, start):
            metadata.append((start - 4, stop))
        elif marker == APP14 and jpeg.startswith(_ADOBE, start):
            adobe_transform = jpeg[start + 11 : start + 12]
    if frame is None:
        raise JpegError("the JPEG has no frame header before its scan")
    _, sos, scan = segments[-1]
    height, width, num_components = _read_size(jpeg, *frame[1:], strict=strict)
    mcu, margin = _read_mcu(jpeg, *frame, jpeg[sos : sos + 1])
    return JpegHeader(
        height,
        width,
        num_components,
        _color_space(num_components, adobe_transform),
        frame[0] in _PROGRESSIVE,
        restart_interval,
        read_orientation([jpeg[start + 4 : stop] for start, stop in metadata]),
        next((place for place in metadata if jpeg.startswith(_EXIF, place[0] + 4)), None),
        metadata,
        sos - 4,
        scan,
        frame[1] + 1,
        required,
        table,
        mcu,
        margin,
    )


def _read_segments(jpeg: bytes, *, strict: bool) -> list[tuple[int, int, int]]:
    """Return marker, start and stop of the content of each segment, up to the first scan's."""
    if not is_jpeg(jpeg):
        raise JpegError(f"not a JPEG: it begins with {jpeg[:4].hex(' ') or 'nothing'}")
    segments = []
    at, end = 2, len(jpeg)
    while 0 < at <= end - 4:
        marker = jpeg[at + 1]
        if marker == jpeg[at] == 0xFF:  # a fill byte, which may precede any marker
            at += 1
            continue
        start, stop = at + 4, at + 2 + (jpeg[at + 2] << 8 | jpeg[at + 3])
        if jpeg[at] != 0xFF or marker < 0xC0 or RST0 <= marker <= EOI or not start <= stop <= end:
            if strict:
                raise JpegError(f"the JPEG is damaged at byte {at}")
            if jpeg[at] != 0xFF:
                at = jpeg.find(b"\xff", at)
                continue
            if marker <= _TEM or RST0 <= marker <= SOI:  # markers without content
                at += 2
                continue
            if marker == EOI:
                break
            stop = max(start, stop)
        segments.append((marker, start, stop))
        if marker == SOS:
            return segments
        at = stop
    raise JpegError("the JPEG ends before its scan")


def _read_size(jpeg: bytes, start: int, stop: int, *, strict: bool) -> tuple[int, int, int]:
    """Return height, width and number of components of a frame header."""
    if strict and stop - start < 6:
        raise JpegError("the JPEG's frame header is too short")
    try:
        height, width, num_components = struct.unpack_from(">HHB", jpeg, start + 1)
    except struct.error:
        raise JpegError("the JPEG ends before its scan") from None
    if strict and (height == 0 or width == 0):
        raise JpegError(f"the JPEG's frame header states no size: {width} x {height} px")
    return height, width, num_components


def _read_mcu(
    jpeg: bytes, marker: int, start: int, stop: int, scan_components: bytes
) -> tuple[tuple[int, int] | None, tuple[int, int]]:
    """Return size of an MCU, None where the image is unusual, and margin, from a frame header."""
    unusual = None, (0, 0)
    precision, num_components = jpeg[start], jpeg[start + 5 : start + 6]
    if marker != _BASELINE or precision != 8 or scan_components != num_components:
        return unusual
    if num_components == b"\x01" and stop - start == 9:
        return (8, 8), (0, 0)  # a scan of one component has MCUs of one block, whatever its factors
    if num_components != b"\x03" or stop - start != 15:
        return unusual
    factors = jpeg[start + 7], jpeg[start + 10], jpeg[start + 13]
    across, down = [f >> 4 for f in factors], [f & 15 for f in factors]
    if factors[1] != factors[2] or not {*across, *down} <= {1, 2, 4}:
        return unusual
    # Upsampling looks one chroma sample to each side: that many px, and as many again to be safe.
    margin = tuple(2 * max(f) if min(f) < max(f) else 0 for f in (down, across))
    return (8 * max(down), 8 * max(across)), (margin[0], margin[1])


def _color_space(num_components: int, adobe_transform: bytes | None) -> ColorSpace:
    """Return the color space that libjpeg assumes."""
    if num_components == 1:
        return "gray"
    if num_components == 4:
        return "ycck" if adobe_transform == b"\x02" else "cmyk"
    return "rgb" if adobe_transform == b"\x00" else "ycc"
