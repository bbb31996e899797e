"""JPEG bytes to pixels: one function hides which library decodes."""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray


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
