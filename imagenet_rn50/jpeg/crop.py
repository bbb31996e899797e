r"""Restart segments: cutting a JPEG as bytes, so that only what a crop needs is decoded.

Huffman-coded data must be decoded from its start, unless restart markers divide it. Between two
markers stands a segment of a fixed number of MCUs (the smallest coded blocks of all components, 8x8
to 32x32 px) that depends on no other segment. So a part of the image can be cut out: keep the
segments that it touches, patch the size in the frame header, number the markers anew. What comes
out is a smaller JPEG for any decoder, and its pixels are those of the whole.

Where the segments begin is found by scanning for markers, or told by a table of their offsets that
packing writes into the JPEG: an APP9 segment, which decoders skip.

    APP9, length, b"restart offsets\0", then for each segment: bytes from its first byte to the
    first byte after the marker that ends it (big-endian uint16)

Only what is usual is cut: baseline, 8 bits, one scan, one or three components. Everything else is
handed back whole.
"""

from __future__ import annotations

import struct
from math import gcd, log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagenet_rn50.jpeg.header import APP0, APP9, EOI, RST0, TABLE_NAME, JpegHeader, read_header

Box = tuple[int, int, int, int]
"""Top, left, height, width, in px."""

_SEGMENT_PX, _LEAST_SEGMENT_PX = 36, 16
_NUMBERS = np.tile(np.arange(RST0, RST0 + 8, dtype=np.uint8), 1 << 17)
_MAX_SEGMENT_BYTES = 0xFFFF
_MAX_TABLE_ENTRIES = (0xFFFF - 2 - len(TABLE_NAME)) // 2


def with_offset_table(jpeg: bytes) -> bytes:
    """Write the offsets of the restart segments into a JPEG, for `cut` to find them at once.

    Args:
        jpeg: A JPEG; where it has a table already, the table is written anew.

    Returns:
        The same image with the table, or `jpeg` as it is when it has no restart markers, is
        unusual, or the table would not fit.

    Raises:
        ValueError: If the bytes are not a JPEG.
    """
    header = read_header(jpeg, strict=True)
    starts = _scan_for_starts(jpeg, header)
    if starts is None:
        return jpeg
    lengths = np.diff(starts)
    if len(lengths) > _MAX_TABLE_ENTRIES or lengths.max() > _MAX_SEGMENT_BYTES:
        return jpeg
    content = TABLE_NAME + lengths.astype(">u2").tobytes()
    table = struct.pack(">BBH", 0xFF, APP9, len(content) + 2) + content
    if header.table is not None:
        old_start, old_stop = header.table[0] - len(TABLE_NAME) - 4, header.table[1]
        return jpeg[:old_start] + table + jpeg[old_stop:]
    # JFIF's APP0 must come first.
    at = header.required[1][1] if jpeg[3] == APP0 else 2
    return jpeg[:at] + table + jpeg[at:]


class Piece(NamedTuple):
    """A JPEG that shows a box, and more around it.

    Attributes:
        jpeg: A complete JPEG.
        offset: Top and left of the box in it, px.
        size: Its height and width, px.
    """

    jpeg: bytes | bytearray
    offset: tuple[int, int]
    size: tuple[int, int]


def cut(jpeg: bytes, box: Box, *, header: JpegHeader | None = None, factor: int = 1) -> Piece:
    """Cut out the least part of a JPEG that shows a box exactly as the whole image does.

    Args:
        jpeg: A JPEG.
        box: What is needed; inside the image and not empty.
        header: What `read_header(jpeg, strict=True)` returned, where it is known already.
        factor: By how much decoding will shrink the piece: 1, 2, 4 or 8.

    Returns:
        The piece. It is `jpeg` itself when nothing can be left out: without restart markers, or
        when anything about it is unusual.

    Raises:
        ValueError: If the bytes are not a JPEG, or the box is not in it.
    """
    header = header or read_header(jpeg, strict=True)
    top, left, height, width = box
    if not (0 <= top < top + height <= header.height and 0 <= left < left + width <= header.width):
        raise ValueError(f"box {box} is not inside {header.height} x {header.width} px")
    whole = Piece(jpeg, (top, left), (header.height, header.width))
    if header.mcu is None or header.restart_interval == 0:
        return whole
    rows, columns = _needed(header, box, factor)
    if (rows[1] - rows[0], columns[1] - columns[0]) == header.grid:
        return whole
    starts = _read_starts(jpeg, header)
    if starts is None:
        starts = _scan_for_starts(jpeg, header)
    if starts is None:
        return whole
    mcu_height, mcu_width = header.mcu
    at = (rows[0] * mcu_height, columns[0] * mcu_width)
    size = (
        min(rows[1] * mcu_height, header.height) - at[0],
        min(columns[1] * mcu_width, header.width) - at[1],
    )
    smaller = _join(
        _smaller_header(jpeg, header, size), jpeg, *_runs(header, starts, rows, columns)
    )
    return Piece(smaller, (top - at[0], left - at[1]), size)


def suggested_interval(num_columns: int, mcu_width: int) -> int:
    """Return how many MCUs a segment should have, for packing.

    Columns can be left out only where segments end with the row, and a segment of about 36 px is
    the best trade between what is decoded in vain and the work and bytes for each segment.

    Args:
        num_columns: MCUs in a row.
        mcu_width: Width of an MCU, px.

    Returns:
        The divisor of `num_columns` that comes nearest; the whole row where it has no good one.
    """
    divisors = [d for d in range(1, num_columns + 1) if num_columns % d == 0]
    near = min(divisors, key=lambda d: abs(log(d * mcu_width / _SEGMENT_PX)))
    return near if near * mcu_width >= _LEAST_SEGMENT_PX else num_columns


def _needed(header: JpegHeader, box: Box, factor: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the first and one past the last row, and column, of the MCUs to keep.

    Every kept row must begin and end with a segment. Where the interval divides the MCUs of a row,
    columns can be left out; else whole rows are kept, as many as begin and end with a segment.
    """
    assert header.mcu is not None
    num_columns, interval = header.grid[1], header.restart_interval
    aligned = num_columns % interval == 0
    steps = (
        1 if aligned else interval // gcd(num_columns, interval),
        interval if aligned else num_columns,
    )
    ranges = []
    for axis in (0, 1):
        step = steps[axis]
        unit = header.mcu[axis] * step
        margin = header.margin[axis] * factor
        first = max(box[axis] - margin, 0) // unit
        stop = -(-(box[axis] + box[axis + 2] + margin) // unit)
        ranges.append((first * step, min(stop * step, header.grid[axis])))
    return ranges[0], ranges[1]


def _read_starts(jpeg: bytes, header: JpegHeader) -> NDArray[np.int64] | None:
    """Return the segments' starts by the table, as `_scan_for_starts` does; None if it lies."""
    if header.table is None:
        return None
    start, stop = header.table
    num_segments = _num_segments(header)
    if stop - start != 2 * num_segments:
        return None
    starts = np.empty(num_segments + 1, np.int64)
    starts[0] = header.scan
    starts[1:] = np.frombuffer(jpeg, ">u2", num_segments, start)
    starts.cumsum(out=starts)
    end = int(starts[-1])
    if end > len(jpeg) or jpeg[end - 2 : end] != b"\xff\xd9":
        return None
    coded = np.frombuffer(jpeg, np.uint8)
    # A byte FF in coded data is followed by 0, so these are markers and not data.
    numbers_at = starts[1:-1] - 1
    if _are_numbered(coded.take(numbers_at)) and (coded.take(numbers_at - 1) == 0xFF).all():
        return starts
    return None


def _scan_for_starts(jpeg: bytes, header: JpegHeader) -> NDArray[np.int64] | None:
    """Find the segments by their markers.

    Returns:
        Offset of each segment's first byte, then of the first byte after the image; (num_segments
        + 1,) int64. None when there are no restart markers, or they are not as they should be.
    """
    if header.mcu is None or header.restart_interval == 0:
        return None
    coded = np.frombuffer(jpeg, np.uint8, offset=header.scan)
    escapes = np.flatnonzero(coded[:-1] == 0xFF)
    codes = coded[escapes + 1]
    markers = np.flatnonzero(codes != 0)
    others = np.flatnonzero((codes[markers] & 0xF8) != RST0)
    if len(others) == 0 or codes[markers[others[0]]] != EOI:
        return None
    markers = markers[: others[0] + 1]
    if len(markers) != _num_segments(header) or not _are_numbered(codes[markers[:-1]]):
        return None
    starts = np.empty(len(markers) + 1, np.int64)
    starts[0] = header.scan
    starts[1:] = escapes[markers] + (header.scan + 2)
    return starts


def _num_segments(header: JpegHeader) -> int:
    """Return how many segments there should be."""
    num_rows, num_columns = header.grid
    return -(-num_rows * num_columns // header.restart_interval)


def _are_numbered(numbers: NDArray[np.uint8]) -> bool:
    """Return whether restart markers count from 0 to 7, over and over."""
    return len(numbers) < len(_NUMBERS) and bool((numbers == _NUMBERS[: len(numbers)]).all())


def _runs(
    header: JpegHeader,
    starts: NDArray[np.int64],
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return what is kept, in runs of segments that follow each other.

    Returns:
        Offset of each run's first byte, (num_runs,) int64; and of the first byte after each of its
        segments, (num_runs, segments in a run) int64.
    """
    num_columns, interval = header.grid[1], header.restart_interval
    if columns == (0, num_columns):
        first = rows[0] * num_columns // interval
        last = -(-rows[1] * num_columns // interval)
        return starts[first : first + 1], starts[None, first + 1 : last + 1]
    in_a_row = num_columns // interval
    first, last = columns[0] // interval, columns[1] // interval
    kept = slice(*rows)
    begins = starts[:-1].reshape(-1, in_a_row)[kept, first]
    return begins, starts[1:].reshape(-1, in_a_row)[kept, first:last]


def _smaller_header(jpeg: bytes, header: JpegHeader, size: tuple[int, int]) -> bytearray:
    """Return what decoding needs of the header, with another height and width."""
    smaller = bytearray()
    for start, stop in header.required:
        if start < header.size_offset < stop:
            size_at = len(smaller) + header.size_offset - start
        smaller += jpeg[start:stop]
    struct.pack_into(">HH", smaller, size_at, *size)
    return smaller


def _join(
    smaller_header: bytearray,
    jpeg: bytes,
    begins: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> bytearray:
    """Return a header, the kept segments with their markers numbered anew, and EOI."""
    stops = ends[:, -1]
    view = memoryview(jpeg)
    parts: list[bytearray | memoryview] = [smaller_header]
    parts += [view[b:e] for b, e in zip(begins.tolist(), stops.tolist(), strict=True)]
    joined = bytearray().join(parts)
    moved = (stops - begins).cumsum() - stops + (len(smaller_header) - 1)  # of each run's bytes
    markers = (ends + moved[:, None]).ravel()
    written = np.frombuffer(joined, np.uint8)
    written[markers] = _NUMBERS[: len(markers)]
    written[-1] = EOI
    return joined
