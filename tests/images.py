"""Images and JPEG files of every kind, for tests of reading and cropping."""

import io
import subprocess
from functools import cache

import numpy as np
import simplejpeg
from PIL import Image


@cache
def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return an image with smooth and noisy parts; (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    rough = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC))
    noise = rng.integers(-40, 41, (height, width, 3))
    noise[:, : width // 2] = 0
    return np.clip(soft + noise, 0, 255).astype(np.uint8)


def pillow_jpeg(pixels: np.ndarray, *, subsampling: str = "4:2:0", **options) -> bytes:
    """Encode with Pillow, which can write restart markers."""
    buffer = io.BytesIO()
    if pixels.ndim == 3:
        options["subsampling"] = subsampling
    Image.fromarray(pixels).save(buffer, format="JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def turbo_jpeg(pixels: np.ndarray, subsampling: str) -> bytes:
    """Encode with libjpeg-turbo in any of 444, 422, 420, 440, 411 and Gray."""
    colours = "GRAY" if pixels.ndim == 2 else "RGB"
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    content: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), colorspace=colours, colorsubsampling=subsampling
    )
    return content


def jpegtran(jpeg: bytes, *options: str) -> bytes:
    """Rewrite a JPEG losslessly with jpegtran."""
    command = ["jpegtran", "-copy", "all", *options]
    return subprocess.run(command, input=jpeg, capture_output=True, check=True).stdout
