"""Time to the first batch of a loader that starts at position 0 or resumes deep in the stream.

    python -m benchmarks.resume

The manifest has as many samples as ImageNet's training split, all of them a few photos of one real
shard, so that disk speed does not matter. Each start is a new process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from imagenet_rn50.data.loader import build_loader
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.data.transforms import TrainTransform
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.shards.manifest import Shard, Split

ROOT = Path(__file__).parents[1]
NUM_SAMPLES, NUM_SHARDS, PHOTOS = 1_281_167, 1024, 64
_POSITIONS = (0, 1_000_000, 17_000_000)
_ROUNDS = 3
_BATCH = 256


def write_shard(path: Path) -> tuple[list[int], list[int]]:
    """Write one shard of concatenated photos; return their offsets and lengths."""
    from benchmarks.loader_data import write_photos

    write_photos(path.parent, PHOTOS)
    photos = [photo.read_bytes() for photo in sorted(path.parent.glob("folder/*/*.jpg"))]
    path.write_bytes(b"".join(photos))
    lengths = [len(photo) for photo in photos]
    return np.cumsum([0, *lengths[:-1]]).tolist(), lengths


def synthetic_split(name: str, offsets: list[int], lengths: list[int]) -> Split:
    """Return a split of ImageNet's size whose shards are all the same file."""
    sizes = np.full(NUM_SHARDS, NUM_SAMPLES // NUM_SHARDS)
    sizes[: NUM_SAMPLES - sizes.sum()] += 1
    photo = np.arange(NUM_SAMPLES) % PHOTOS
    return Split(
        shards=tuple(Shard(name, int(size), sum(lengths), "") for size in sizes),
        offsets=np.array(offsets)[photo],
        lengths=np.array(lengths, np.int32)[photo],
        labels=(photo % 1000).astype(np.int32),
        keys=np.full(NUM_SAMPLES, b"n00000000_0", "S16"),
    )


def first_batch(folder: Path, position: int, workers: int) -> float:
    """Return the seconds from building the loader to its first batch."""
    offsets, lengths = np.load(folder / "index.npy").tolist()
    split = synthetic_split("photos.bin", offsets, lengths)
    start = time.perf_counter()
    order = ShardShuffleSampler(split.shard_sizes, seed=0, window=32)
    share = DistributedBatchSampler(position, 2 * position + 10 * _BATCH, _BATCH)
    transform = TrainTransform(DataRecipe(), seed=0)
    loader = build_loader(folder, split, share, transform, order=order, num_workers=workers)
    next(iter(loader))
    return time.perf_counter() - start


def main() -> None:
    """Print and save the medians."""
    if len(sys.argv) > 1:
        folder, position = Path(sys.argv[1]), int(sys.argv[2])
        print(first_batch(folder, position, workers=2), flush=True)
        os._exit(0)
    lines = [f"{NUM_SAMPLES} samples, batch {_BATCH}, 2 workers, medians of {_ROUNDS} starts"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "index.npy", np.array(write_shard(folder / "photos.bin")))
        seconds: dict[int, list[float]] = {position: [] for position in _POSITIONS}
        for _ in range(_ROUNDS):
            for position, measured in seconds.items():
                command = [sys.executable, "-m", "benchmarks.resume", name, str(position)]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                measured.append(float(done.stdout))
    lines += [
        f"first batch at position {position:>10}: {median(measured):.2f} s"
        for position, measured in seconds.items()
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    (ROOT / "benchmarks" / "results" / "resume.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
