"""A hash of the samples that the run was trained on, each at its position in the stream.

It is computed from the batches that reach the model, and it is a sum: over steps, and over any
number of ranks. So two runs with equal hashes saw the same samples in the same order, at any world
size and wherever they were stopped.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

_BITS = 64


def hash_of_samples(position: int, indices: Tensor) -> int:
    """Return the sum of a hash of each (position, index), in [0, 2^64).

    Args:
        position: Where the batch begins in the training stream.
        indices: Sample indices; (B,) int64, on the CPU.
    """
    positions = np.arange(position, position + len(indices), dtype=np.uint64)
    seen = indices.numpy().astype(np.uint64)
    return int(_mixed(_mixed(positions) ^ seen).sum(dtype=np.uint64))


def as_int64(value: int) -> int:
    """Return a number in [0, 2^64) as the int64 of the same bits, which torch can sum."""
    return value - (1 << _BITS) if value >> (_BITS - 1) else value


def wrapped(value: int) -> int:
    """Return a number modulo 2^64."""
    return value % (1 << _BITS)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Hash 64-bit integers with SplitMix64 (Steele et al. 2014); overflow wraps."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
