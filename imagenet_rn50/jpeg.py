"""JPEG bytes to pixels: one place hides which library decodes, and how little of a picture it must.

simplejpeg (libjpeg-turbo) was the fastest of the well-kept decoders on PyPI; benchmarks/decoders.py
sets it beside the others.
"""

from __future__ import annotations

import threading

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from imagenet_rn50.jpeg_layout import Layout, read_layout
from imagenet_rn50.restart import Box, cut

_MAX_BYTES = 3 * 179_000_000  # beyond what Pillow decodes: a bomb, or damaged
_DCT_FACTORS = (8, 4, 2)
# Shrinking in the DCT averages more sharply than antialiased resizing. Over real photos the result
# is within half a level of 255 of resizing alone where at least this factor remains for the latter;
# where the crop is just twice the target, it is two levels off.
_DCT_HEADROOM = 2.25


def decode(jpeg: bytes) -> NDArray[np.uint8]:
    """Decodes a whole JPEG to RGB; grayscale becomes three equal channels.

    Args:
        jpeg: A complete JPEG file of one or three components.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: When the bytes are not a JPEG, or are damaged.
    """
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
    return pixels


def dct_factor(box: Box, size: tuple[int, int]) -> int:
    """Returns by how much decoding may shrink a box that will be resized to `size`.

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
    layout: Layout | None = None,
) -> NDArray[np.uint8]:
    """Decodes a box of a JPEG, and of the rest only what cannot be left out.

    Args:
        jpeg: A complete JPEG file of one or three components.
        box: Top, left, height and width, px; all multiples of `factor`.
        factor: Shrink by 1, 2, 4 or 8 while decoding, which saves most of an inverse DCT.
        layout: What `read_layout(jpeg)` returned, where it is known already.

    Returns:
        (height / factor, width / factor, 3) uint8; with factor 1, the very pixels of `decode`. It
        lies in memory that the thread's next call writes over.

    Raises:
        ValueError: When the bytes are not a JPEG, or the needed part is damaged.
    """
    layout = layout or read_layout(jpeg)
    piece, (top, left), (height, width) = cut(jpeg, box, layout=layout, factor=factor)
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


_reused = threading.local()


def _memory(num_bytes: int) -> NDArray[np.uint8]:
    """Returns this thread's memory to decode into: fresh memory would cost its page faults."""
    if num_bytes > _MAX_BYTES:
        raise ValueError(f"the picture is too large: {num_bytes} bytes of pixels")
    memory: NDArray[np.uint8] = getattr(_reused, "memory", np.empty(0, np.uint8))
    if len(memory) < num_bytes:
        _reused.memory = memory = np.empty(num_bytes, np.uint8)
    return memory
