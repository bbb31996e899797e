"""Reading samples in training order from a cold disk, beside sequential reading of the shards.

    python -m benchmarks.cold_read --folder data/bench-cold

Nothing is decoded. Before each pass the kernel is told to forget the shards. Both take turns.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import tyro

from imagenet_rn50.data.prefetch import Prefetcher
from imagenet_rn50.data.reader import ShardReader
from imagenet_rn50.data.sampler import ShardShuffleSampler
from imagenet_rn50.shards.manifest import Shard, Split
from imagenet_rn50.shards.store import LocalShards

ROOT = Path(__file__).parents[1]
_SAMPLE_BYTES = 110_000
_BATCH = 256


@dataclass(frozen=True)
class Arguments:
    """Time reading in turns."""

    folder: Path = Path("data/bench-cold")
    """Where the shards are written, once."""
    shards: int = 24
    """How many."""
    samples: int = 400
    """Samples in a shard."""
    window: int = 8
    """Shards that the order mixes."""
    rounds: int = 5
    """Turns of each."""


def write_shards(arguments: Arguments) -> Split:
    """Write shards of random bytes; return where the samples are."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    num_bytes = arguments.samples * _SAMPLE_BYTES
    shards = []
    for number in range(arguments.shards):
        path = arguments.folder / f"{number:04d}.tar"
        if not path.is_file() or path.stat().st_size != num_bytes:
            path.write_bytes(os.urandom(num_bytes))
        shards.append(Shard(path.name, arguments.samples, num_bytes, hashlib.sha256().hexdigest()))
    n = arguments.shards * arguments.samples
    return Split(
        shards=tuple(shards),
        offsets=np.arange(n) % arguments.samples * _SAMPLE_BYTES,
        lengths=np.full(n, _SAMPLE_BYTES, np.int32),
        labels=np.zeros(n, np.int32),
        keys=np.zeros(n, "S1"),
    )


def forget(folder: Path, split: Split) -> None:
    """Drops the shards from the page cache."""
    for shard in split.shards:
        with (folder / shard.name).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sequential(folder: Path, split: Split) -> None:
    """Read the shards front to back, one after the other."""
    buffer = bytearray(1 << 20)
    for shard in split.shards:
        with (folder / shard.name).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def in_order(folder: Path, split: Split, window: int, *, ahead: bool) -> None:
    """Read every sample in training order, with reading ahead or without."""
    order = ShardShuffleSampler(split.shard_sizes, seed=0, window=window)
    store = LocalShards(folder)
    prefetcher = Prefetcher(store, split, order, 0, 1)
    with ShardReader(store, split) as reader:
        for first in range(0, split.num_samples, _BATCH):
            if ahead:
                prefetcher.advance(first)
            _, indices = order.indices(first, min(_BATCH, split.num_samples - first))
            for index in indices.tolist():
                reader.read(index)
    prefetcher.close()


def main() -> None:
    """Print and save MB/s of each, and ratios within the rounds."""
    arguments = tyro.cli(Arguments)
    split = write_shards(arguments)
    folder, window = arguments.folder, arguments.window
    passes: dict[str, Callable[[], None]] = {
        "sequential": lambda: sequential(folder, split),
        "in order, read ahead": lambda: in_order(folder, split, window, ahead=True),
        "in order, not ahead": lambda: in_order(folder, split, window, ahead=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(arguments.rounds):
        for name, read in passes.items():
            forget(folder, split)
            began = time.perf_counter()
            read()
            seconds[name].append(time.perf_counter() - began)
    megabytes = split.num_samples * _SAMPLE_BYTES / 1e6
    lines = [f"{megabytes:.0f} MB in {arguments.shards} shards, window {window}, cold, medians"]
    for name, measured in seconds.items():
        ratio = median(s / m for s, m in zip(seconds["sequential"], measured, strict=True))
        lines.append(f"{name:<22} {megabytes / median(measured):>7.0f} MB/s  x {ratio:.2f}")
    text = "\n".join(lines) + "\n"
    print(text)
    (ROOT / "benchmarks" / "results" / "cold_read.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
