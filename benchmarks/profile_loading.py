"""Where the CPU time of a training image goes, on one core.

    python -m benchmarks.profile_loading --data data/bench-loaders

Times the stages one after the other, then a worker of the real loader with the same images and the
same crops, in turns. What the worker takes beyond the sum of its stages is what handing images from
stage to stage, to the batch and to the other process costs. Reads the shards with restart markers
that benchmarks.loaders wrote.
"""

from __future__ import annotations

import json
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import simplejpeg
import torch
import tyro

from benchmarks.loader_contenders import cpu_seconds
from benchmarks.loaders import describe_run, run_metadata
from imagenet_rn50.data.dataset import empty_images, keep_freed_memory
from imagenet_rn50.data.loader import Loader, build_loader
from imagenet_rn50.data.reader import ShardReader
from imagenet_rn50.data.sampler import DistributedBatchSampler
from imagenet_rn50.data.transforms import TrainTransform, augmentation_rng, resize
from imagenet_rn50.jpeg.crop import cut
from imagenet_rn50.jpeg.header import read_header
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.shards.manifest import TRAIN, Manifest
from imagenet_rn50.shards.store import LocalShards

ROOT = Path(__file__).parents[1]
_SIZE = 224
_LARGEST = 3 * 2400 * 2400  # bytes of pixels
_STAGES = ("read", "check", "header", "draw", "cut", "decode", "resize and flip")


@dataclass(frozen=True)
class Arguments:
    """Time the stages of loading."""

    data: Path = Path("data/bench-loaders")
    """Where benchmarks.loaders keeps its data."""
    images: int = 1280
    """Images in a round."""
    batch: int = 128
    """Images in a batch of the worker."""
    rounds: int = 5
    """Rounds; medians are printed."""


def time_stages(reader: ShardReader, count: int) -> list[float]:
    """Return microseconds an image of each stage."""
    transform = TrainTransform(DataRecipe(), seed=0)
    out = empty_images(1, _SIZE, _SIZE)[0]
    memory = np.empty(_LARGEST, np.uint8)
    spent = np.zeros(len(_STAGES))
    for index in range(count):
        times = [time.thread_time()]
        content = reader.read(index)
        times.append(time.thread_time())
        zlib.crc32(content)
        times.append(time.thread_time())
        header = read_header(content, strict=True)
        times.append(time.thread_time())
        rng = augmentation_rng(0, 0, index)
        box, factor = transform.draw_box(rng, header, _SIZE)
        flip = rng.random() < transform.data.flip
        times.append(time.thread_time())
        piece = cut(content, box, header=header, factor=factor)
        times.append(time.thread_time())
        height, width = (-(-side // factor) if factor > 1 else 0 for side in piece.size)
        pixels = simplejpeg.decode_jpeg(
            piece.jpeg, colorspace="RGB", min_height=height, min_width=width, buffer=memory
        )
        times.append(time.thread_time())
        top, left, height, width = (value // factor for value in (*piece.offset, *box[2:]))
        crop = pixels[top : top + height, left : left + width]
        resize(crop, (_SIZE, _SIZE), flip=flip, out=out)
        times.append(time.thread_time())
        spent += np.diff(times)
    return [float(value) for value in 1e6 * spent / count]


def time_worker(loader: Loader, count: int) -> tuple[float, float]:
    """Return microseconds an image of the worker's CPU time, and of this process's."""
    all_before, own_before = cpu_seconds(), time.process_time()
    for _ in loader:
        pass
    own = time.process_time() - own_before
    return 1e6 * (cpu_seconds() - all_before - own) / count, 1e6 * own / count


def main() -> None:
    """Print and save the medians."""
    arguments = tyro.cli(Arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    folder = arguments.data / "restarts"
    split = Manifest.load(folder).split(TRAIN)
    loader = build_loader(
        folder,
        split,
        DistributedBatchSampler(0, arguments.images, arguments.batch),
        TrainTransform(DataRecipe(), seed=0),
        num_workers=1,
    )
    time_worker(loader, arguments.images)  # starts the worker
    unchecked = replace(split, crc32s=None)  # the check is timed apart
    rounds, workers = [], []
    with ShardReader(LocalShards(folder), unchecked) as reader:
        time_stages(reader, arguments.images)
        for _ in range(arguments.rounds):
            rounds.append(time_stages(reader, arguments.images))
            workers.append(time_worker(loader, arguments.images))
    loader.close()
    medians = [median(stage) for stage in zip(*rounds, strict=True)]
    worker, main_process = (median(one) for one in zip(*workers, strict=True))
    total = median(sum(stages) for stages in rounds)
    ratio = median(one[0] / sum(stages) for one, stages in zip(workers, rounds, strict=True))
    made_by = run_metadata("benchmarks.profile_loading")
    lines = [
        describe_run(made_by),
        f"{arguments.images} images, medians of {arguments.rounds} rounds, CPU time",
        "",
    ]
    lines += [
        f"{name:<16} {us:>6.0f} us  {us / total:>6.1%}"
        for name, us in zip(_STAGES, medians, strict=True)
    ]
    lines += [
        f"{'sum':<16} {total:>6.0f} us",
        f"{'a worker':<16} {worker:>6.0f} us, in the same round {ratio:.3f} of the sum",
        f"{'main process':<16} {main_process:>6.0f} us",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    saved = {
        **made_by,
        "images": arguments.images,
        "rounds": arguments.rounds,
        "stages_us": dict(zip(_STAGES, medians, strict=True)),
        "sum_us": total,
        "worker_us": worker,
        "worker_to_sum": ratio,
        "main_process_us": main_process,
    }
    results = ROOT / "benchmarks" / "results" / "profile_loading"
    results.with_suffix(".txt").write_text(text, encoding="utf-8")
    results.with_suffix(".json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
