"""JPEG bytes to pixels: one place hides which library decodes, and how little of an image it must.

simplejpeg (libjpeg-turbo) was the fastest of the well-kept decoders on PyPI; benchmarks/decoders.py
sets it beside the others.
"""

from __future__ import annotations

import threading

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from imagenet_rn50.jpeg.crop import Box, cut
from imagenet_rn50.jpeg.header import JpegHeader, read_header
from imagenet_rn50.jpeg.orientation import upright

_MAX_BYTES = 3 * 179_000_000  # beyond what Pillow decodes: a bomb, or damaged
MAX_ASPECT_RATIO = 32
"""Images that are more elongated are cut to their center before they are resized."""
_DCT_FACTORS = (8, 4, 2)
# Shrinking in the DCT averages more sharply than antialiased resizing. Over real photos the result
# is within half a level of 255 of resizing alone where at least this factor remains for the latter;
# where the crop is just twice the target, it is two levels off.
_DCT_HEADROOM = 2.25


def decode(jpeg: bytes) -> NDArray[np.uint8]:
    """Decode a whole JPEG to upright RGB; grayscale becomes three equal channels.

    Args:
        jpeg: A complete JPEG file of one or three components.

    Returns:
        (H, W, 3) uint8, turned by its EXIF orientation.

    Raises:
        ValueError: If the bytes are not a JPEG, are damaged, or state too large a size.
    """
    header = read_header(jpeg)
    _require_size(3 * header.height * header.width)
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
    return upright(pixels, header.orientation)


def central_box(height: int, width: int) -> Box:
    """Return the part of an image that is resized where a central crop follows.

    Resizing the shorter side to R makes the longer one R x ratio, and almost all of that is cropped
    away: 11.8 GB of an image of 1 x 60,000 px. So where the ratio exceeds `MAX_ASPECT_RATIO` by 2,
    squares of the shorter side are cut off both ends, equally many. Each is R rows of the resized
    image, for any R, so that the crop stays where it was: to 1 / (2 `MAX_ASPECT_RATIO`) of a
    resized px, since the longer side is rounded; exactly, where R x ratio is a whole number.

    Args:
        height: Height of the image, px.
        width: Width of the image, px.

    Returns:
        The whole image, or its center.
    """
    short, long = sorted((height, width))
    cut_off = short * max(0, (long // short - MAX_ASPECT_RATIO) // 2)
    if height < width:
        return 0, cut_off, height, width - 2 * cut_off
    return cut_off, 0, height - 2 * cut_off, width


def dct_factor(box: Box, size: tuple[int, int]) -> int:
    """Return by how much decoding may shrink a box that will be resized to `size`.

    Args:
        box: Top, left, height and width, px.
        size: Height and width that the box will be resized to, px.

    Returns:
        The largest of 8, 4, 2 and 1 that changes the result by no more than can be neglected.
    """
    scale = min(box[2] / size[0], box[3] / size[1])
    return next((f for f in _DCT_FACTORS if scale >= f * _DCT_HEADROOM), 1)


def decode_box(
    jpeg: bytes,
    box: Box,
    *,
    factor: int = 1,
    header: JpegHeader | None = None,
) -> NDArray[np.uint8]:
    """Decode a box of a JPEG, and of the rest only what cannot be left out.

    Args:
        jpeg: A complete JPEG file of one or three components.
        box: Top, left, height and width in the stored image, px; all multiples of `factor`.
        factor: Shrink by 1, 2, 4 or 8 while decoding, which saves most of an inverse DCT.
        header: What `read_header(jpeg, strict=True)` returned, where it is known already.

    Returns:
        (height / factor, width / factor, 3) uint8 as stored, not turned; with factor 1, the very
        pixels of the whole. It lies in memory that the thread's next call writes over.

    Raises:
        ValueError: If the bytes are not a JPEG, or the needed part is damaged.
    """
    header = header or read_header(jpeg, strict=True)
    piece, (top, left), (height, width) = cut(jpeg, box, header=header, factor=factor)
    height, width = -(-height // factor), -(-width // factor)
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        piece,
        colorspace="RGB",
        min_height=height if factor > 1 else 0,
        min_width=width if factor > 1 else 0,
        buffer=_memory(height * width * 3),
    )
    if pixels.shape != (height, width, 3):
        raise ValueError(f"decoded {pixels.shape[:2]} px where {height} x {width} were expected")
    top, left = top // factor, left // factor
    return pixels[top : top + box[2] // factor, left : left + box[3] // factor]


def _require_size(num_bytes: int) -> None:
    """Refuse to decode what takes too much memory."""
    if num_bytes > _MAX_BYTES:
        raise ValueError(f"the image is too large: {num_bytes} bytes of pixels")


_reused = threading.local()


def _memory(num_bytes: int) -> NDArray[np.uint8]:
    """Return this thread's memory to decode into: fresh memory would cost its page faults."""
    _require_size(num_bytes)
    memory: NDArray[np.uint8] = getattr(_reused, "memory", np.empty(0, np.uint8))
    if len(memory) < num_bytes:
        _reused.memory = memory = np.empty(num_bytes, np.uint8)
    return memory
