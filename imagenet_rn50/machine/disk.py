"""How fast the volume of the shards is, with nothing of them in memory.

The kernel is told to forget the shards first. They are read front to back, as training reads ahead,
and then sample by sample at random, as it would have to without reading ahead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagenet_rn50.shards.manifest import Split

_BUFFER_BYTES = 8 << 20
_ENOUGH_BYTES = 64 << 20
_CAN_FORGET = hasattr(os, "posix_fadvise")  # not on macOS


@dataclass(frozen=True)
class DiskRates:
    """How fast shards come from their volume.

    Attributes:
        sequential: Whole shards, front to back, one reader; MiB/s.
        random: Single samples at random, one reader; MiB/s.
        num_bytes: How much was read front to back.
    """

    sequential: float
    random: float
    num_bytes: int

    @property
    def is_enough(self) -> bool:
        """Whether the rates say something about the volume: much was read, and not from memory."""
        return _CAN_FORGET and self.num_bytes >= _ENOUGH_BYTES


def measure_disk(folder: Path, split: Split, seconds: float) -> DiskRates:
    """Measures reading shards that are not in memory.

    Args:
        folder: Where the shards stand.
        split: What stands in them.
        seconds: How long each of the two ways is tried, at most.
    """
    paths = [folder / shard.name for shard in split.shards]
    for path in paths:
        _forget(path)
    num_bytes, sequential = _read_all(_front_to_back(paths), seconds)
    for path in paths:
        _forget(path)
    _, random = _read_all(_at_random(paths, split), seconds)
    return DiskRates(sequential, random, num_bytes)


def read_whole(paths: list[Path]) -> None:
    """Reads files front to back, after which they are in memory, as far as there is room."""
    for _ in _front_to_back(paths):
        pass


def _read_all(sizes: Iterator[int], seconds: float) -> tuple[int, float]:
    """Reads until it is done or the time is up; returns bytes, and MiB/s."""
    began, num_bytes = time.perf_counter(), 0
    for size in sizes:
        num_bytes += size
        if time.perf_counter() - began > seconds:
            break
    return num_bytes, num_bytes / (time.perf_counter() - began) / 2**20


def _front_to_back(paths: list[Path]) -> Iterator[int]:
    """Reads whole files; yields how many bytes came with each piece."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                yield size


def _at_random(paths: list[Path], split: Split) -> Iterator[int]:
    """Reads each sample once, in no order; yields its bytes."""
    descriptors: dict[int, int] = {}
    try:
        for index in np.random.default_rng(0).permutation(split.num_samples).tolist():
            shard = split.shard_of(index)
            if shard not in descriptors:
                descriptors[shard] = os.open(paths[shard], os.O_RDONLY | os.O_CLOEXEC)
                if _CAN_FORGET:
                    os.posix_fadvise(descriptors[shard], 0, 0, os.POSIX_FADV_RANDOM)
            length, offset = int(split.lengths[index]), int(split.offsets[index])
            yield len(os.pread(descriptors[shard], length, offset))
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _forget(path: Path) -> None:
    """Asks the kernel to drop a file from memory; what is not yet on disk is written first."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if _CAN_FORGET:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
