"""Milliseconds of decoding a whole photo with the decoders on PyPI, on one core, in turns.

    python -m benchmarks.decoders --data data/bench-loaders

The photos are those of benchmarks/loader_data.py. A decoder that is not installed is left out.
"""

from __future__ import annotations

import importlib.util
import io
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro

from imagenet_rn50.jpeg import decode as jpeg
from imagenet_rn50.jpeg.header import read_header

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Arguments:
    """Time decoders in turns."""

    data: Path = Path("data/bench-loaders")
    """Where benchmarks.loader_data wrote its photos."""
    photos: int = 200
    """How many are decoded in a round."""
    rounds: int = 7
    """Turns of each decoder."""


def _pillow(content: bytes) -> Any:
    """Pillow."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def _opencv(content: bytes) -> Any:
    """OpenCV, to RGB."""
    import cv2

    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)


def _torchvision(content: bytes) -> Any:
    """Torchvision's decoder, which it deprecates in favour of TorchCodec."""
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)


def _torchcodec(content: bytes) -> Any:
    """TorchCodec's decoder, torchvision's successor."""
    from torchcodec.decoders import decode_jpeg

    return decode_jpeg(content)


def _ours(content: bytes) -> Any:
    """Simplejpeg into memory that is used again, as loading does."""
    header = read_header(content, strict=True)
    return jpeg.decode_box(content, (0, 0, header.height, header.width), header=header)


def main() -> None:
    """Print and save the medians."""
    arguments = tyro.cli(Arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    decoders: dict[str, Callable[[bytes], Any]] = {
        "Pillow": _pillow,
        "torchvision": _torchvision,
        "simplejpeg": jpeg.decode,
        "simplejpeg, memory reused": _ours,
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        decoders["opencv"] = _opencv
    if importlib.util.find_spec("torchcodec"):
        decoders["torchcodec"] = _torchcodec
    paths = sorted((arguments.data / "folder").glob("*/*.jpg"))[: arguments.photos]
    photos = [path.read_bytes() for path in paths]
    milliseconds: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(arguments.rounds):
        for name, decode in decoders.items():
            began = time.perf_counter()
            for photo in photos:
                decode(photo)
            milliseconds[name].append(1000 * (time.perf_counter() - began) / len(photos))
    lines = [f"{len(photos)} photos, mean {np.mean([*map(len, photos)]) / 1000:.0f} kB, one core"]
    for name, measured in milliseconds.items():
        ratio = median(
            one / ours for one, ours in zip(measured, milliseconds["simplejpeg"], strict=True)
        )
        lines.append(f"{name:<26} {median(measured):.2f} ms  x {ratio:.2f}")
    text = "\n".join(lines) + "\n"
    print(text)
    (ROOT / "benchmarks" / "results" / "decoders.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
