"""A hash of the samples that were really trained on, each at its position in the stream.

It is taken from the batches as they reach the model, and its parts add up: over steps, and over
ranks in any number. So two runs saw the same samples in the same order if their hashes are equal,
whatever their layouts were and wherever they were stopped.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

_BITS = 64


def hash_of_samples(position: int, indices: Tensor) -> int:
    """Return the sum of a hash of each (position, index), in [0, 2^64).

    Args:
        position: Where the batch begins in the training stream.
        indices: Sample indices; (B,) int64, on the host.
    """
    positions = np.arange(position, position + len(indices), dtype=np.uint64)
    seen = indices.numpy().astype(np.uint64)
    return int(_mixed(_mixed(positions) ^ seen).sum(dtype=np.uint64))


def as_int64(value: int) -> int:
    """Return a number of [0, 2^64) as the int64 of the same bits, which torch can add up."""
    return value - (1 << _BITS) if value >> (_BITS - 1) else value


def wrapped(value: int) -> int:
    """Return a number modulo 2^64."""
    return value % (1 << _BITS)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Scatters 64-bit integers as SplitMix64 does (Steele et al. 2014); overflow wraps."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scattered: np.ndarray = values ^ (values >> np.uint64(31))
    return scattered
