"""Where the CPU time of a training image goes, on one core.

    python -m benchmarks.profile_loading --data data/bench-loaders

Reads the shards with restart markers that benchmarks.loaders wrote.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import simplejpeg
import torch
import tyro

from imagenet_rn50.data.dataset import empty_images, keep_freed_memory
from imagenet_rn50.data.reader import ShardReader
from imagenet_rn50.data.transforms import augmentation_rng, random_crop_box, resize
from imagenet_rn50.jpeg.crop import cut
from imagenet_rn50.jpeg.header import read_header
from imagenet_rn50.shards.manifest import TRAIN, Manifest
from imagenet_rn50.shards.store import LocalShards

ROOT = Path(__file__).parents[1]
_STAGES = ("read", "check", "header", "draw", "cut", "decode", "resize and flip")


@dataclass(frozen=True)
class Arguments:
    """Time the stages of loading."""

    data: Path = Path("data/bench-loaders")
    """Where benchmarks.loaders keeps its data."""
    images: int = 400
    """Images in a round."""
    rounds: int = 5
    """Rounds; medians are printed."""


def one_round(reader: ShardReader, count: int, epoch: int) -> list[float]:
    """Return microseconds an image of each stage."""
    out = empty_images(1, 224, 224)[0]
    memory = np.empty(3 * 1000 * 1000, np.uint8)
    spent = np.zeros(len(_STAGES))
    for index in range(count):
        times = [time.thread_time()]
        content = reader.read(index)
        times.append(time.thread_time())
        zlib.crc32(content)
        times.append(time.thread_time())
        header = read_header(content, strict=True)
        times.append(time.thread_time())
        rng = augmentation_rng(0, epoch, index)
        box = random_crop_box(rng, header.height, header.width, (0.08, 1.0), (3 / 4, 4 / 3))
        times.append(time.thread_time())
        piece = cut(content, box, header=header)
        times.append(time.thread_time())
        pixels = simplejpeg.decode_jpeg(piece.jpeg, colorspace="RGB", buffer=memory)
        times.append(time.thread_time())
        (top, left), (height, width) = piece.offset, box[2:]
        crop = pixels[top : top + height, left : left + width]
        resize(crop, (224, 224), flip=bool(index % 2), out=out)
        times.append(time.thread_time())
        spent += np.diff(times)
    return [float(value) for value in 1e6 * spent / count]


def main() -> None:
    """Print and save the medians."""
    arguments = tyro.cli(Arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    folder = arguments.data / "restarts"
    split = replace(Manifest.load(folder).split(TRAIN), crc32s=None)  # the check is timed apart
    with ShardReader(LocalShards(folder), split) as reader:
        rounds = [one_round(reader, arguments.images, epoch) for epoch in range(arguments.rounds)]
    medians = [median(stage) for stage in zip(*rounds, strict=True)]
    lines = [f"{arguments.images} images, medians of {arguments.rounds} rounds, CPU time"]
    lines += [
        f"{name:<16} {us:>6.0f} us  {us / sum(medians):>6.1%}"
        for name, us in zip(_STAGES, medians, strict=True)
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    (ROOT / "benchmarks" / "results" / "profile_loading.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
