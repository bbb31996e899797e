"""The order: which sample stands at which position.

A pure function of (sizes of the shards, seed, epoch, window). Shards are permuted, then samples are
permuted within a sliding window of shards, so that reading stays close to sequential while batches
stay well mixed. The training stream is the concatenation of the epochs' permutations: nothing is
dropped, nothing padded, and a batch may straddle two epochs.

Random numbers are raw 64-bit draws of Philox, whose stream NumPy guarantees (NEP 19), unlike the
results of `Generator.permutation`; so an order is the same in every version.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# Draws for different purposes never share a stream, even with equal seeds.
_ORDER_STREAM = 0

_CACHED_EPOCHS = 2


def epoch_order(
    shard_sizes: NDArray[np.int64], *, seed: int, epoch: int, window: int
) -> NDArray[np.int64]:
    """Returns the permutation of one epoch.

    A sample of the shard at rank r gets a position drawn uniformly from r +- window / 2, reflected
    at both ends; sorting by it mixes each sample with those of about `window` shards, equally at
    the ends and in the middle.

    Args:
        shard_sizes: Number of samples of each shard; (num_shards,) int64.
        seed: The recipe's seed.
        epoch: Epoch, from 0.
        window: How many neighbouring shards are mixed with each other, at least 1.

    Returns:
        Sample indices in the order of the epoch; (n,) int64, a permutation of 0..n-1.
    """
    num_shards = len(shard_sizes)
    random = _draws(seed, epoch)
    rank_of_shard = np.empty(num_shards, np.int64)
    rank_of_shard[_permute(random, num_shards)] = np.arange(num_shards)

    num_samples = int(shard_sizes.sum())
    uniform = (random.random_raw(num_samples) >> np.uint64(11)) * 2.0**-53  # [0, 1)
    middle = np.repeat(rank_of_shard, shard_sizes) + 0.5
    spread = min(window, num_shards)
    position = np.abs(middle + (uniform - 0.5) * spread)
    position = np.where(position > num_shards, 2 * num_shards - position, position)
    return np.argsort(position, kind="stable")


def shard_sequence(num_shards: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Returns the shards in the order in which `epoch_order` comes to them; (num_shards,) int64."""
    return _permute(_draws(seed, epoch), num_shards)


def _draws(seed: int, epoch: int) -> np.random.Philox:
    """Returns the source of an epoch's random numbers: first one a shard, then one a sample."""
    return np.random.Philox(np.random.SeedSequence([seed, epoch, _ORDER_STREAM]))


def _permute(random: np.random.Philox, count: int) -> NDArray[np.int64]:
    """Returns a random permutation of 0..count-1."""
    return np.argsort(random.random_raw(count), kind="stable")


class Order(Protocol):
    """Which sample stands at a position, and which shards a reader should have at hand.

    Shards come in turns: turn t is the t-th shard that the stream comes to, epoch after epoch.
    """

    def indices(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns epochs and sample indices of positions first, ..., first + count - 1."""

    def active_shards(self, position: int) -> range:
        """Returns the turns of the shards that may be in use at a position."""

    def shard_at(self, turn: int) -> int:
        """Returns which shard a turn is."""


class SequentialSampler:
    """The samples as they stand in the shards, once: the order of evaluation.

    Args:
        shard_sizes: Number of samples of each shard; (num_shards,) int64.
    """

    def __init__(self, shard_sizes: NDArray[np.int64]) -> None:
        self._stops = np.cumsum(shard_sizes)

    def indices(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns zeros, and the positions themselves, each (count,) int64."""
        return np.zeros(count, np.int64), np.arange(first, first + count)

    def active_shards(self, position: int) -> range:
        """Returns the one shard that is in use at a position."""
        turn = int(np.searchsorted(self._stops, position, side="right"))
        return range(turn, turn + 1)

    def shard_at(self, turn: int) -> int:
        """Returns which shard a turn is: there is one turn for each, in order.

        Raises:
            IndexError: After the last shard.
        """
        if turn >= len(self._stops):
            raise IndexError(turn)
        return turn


class ShardShuffleSampler:
    """The endless stream of training samples, addressed by position.

    Holds nothing but a cache of the last epochs' permutations.

    Args:
        shard_sizes: Number of samples of each shard; (num_shards,) int64.
        seed: The recipe's seed.
        window: How many neighbouring shards are mixed with each other.
    """

    def __init__(self, shard_sizes: NDArray[np.int64], *, seed: int, window: int) -> None:
        self._shard_sizes = shard_sizes
        self._seed = seed
        self._window = window
        self._orders: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self._sequences: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self.num_samples = int(shard_sizes.sum())

    def indices(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns what stands at positions first, ..., first + count - 1 of the stream.

        Args:
            first: Position in the concatenated epochs, from 0.
            count: Number of positions.

        Returns:
            Epochs and sample indices, each (count,) int64.
        """
        positions = np.arange(first, first + count)
        epochs = positions // self.num_samples
        indices = np.empty(count, np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1) if count else ():
            here = epochs == epoch
            indices[here] = self._order_of(epoch)[positions[here] - epoch * self.num_samples]
        return epochs, indices

    def active_shards(self, position: int) -> range:
        """Returns the turns of the shards that may be in use at a position.

        Samples stray from their shard's place by half a window, so this many shards on both sides
        of the position's own place are in use; beyond the end of the epoch, those of the next.
        """
        num_shards = len(self._shard_sizes)
        place = position * num_shards / self.num_samples
        reach = min(self._window, num_shards) / 2 + 1
        return range(max(0, int(place - reach)), int(place + reach) + 1)

    def shard_at(self, turn: int) -> int:
        """Returns which shard a turn is; every shard has one turn in an epoch."""
        epoch, rank = divmod(turn, len(self._shard_sizes))
        if epoch not in self._sequences:
            self._sequences[epoch] = shard_sequence(
                len(self._shard_sizes), seed=self._seed, epoch=epoch
            )
            if len(self._sequences) > _CACHED_EPOCHS:
                self._sequences.popitem(last=False)
        return int(self._sequences[epoch][rank])

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        """Returns an epoch's permutation, from the cache where it is there."""
        if epoch not in self._orders:
            self._orders[epoch] = epoch_order(
                self._shard_sizes, seed=self._seed, epoch=epoch, window=self._window
            )
            if len(self._orders) > _CACHED_EPOCHS:
                self._orders.popitem(last=False)
        return self._orders[epoch]


def batch_starts(start: int, stop: int, batch: int, rank: int, world_size: int) -> range:
    """Returns the positions at which the batches of one rank begin.

    Consecutive batches go to consecutive ranks, so that the samples of a global batch are the same
    for any number of ranks. The last batch is shorter when `stop` cuts it.

    Args:
        start: First position of all.
        stop: One past the last position.
        batch: Samples in a batch.
        rank: This rank, from 0.
        world_size: Number of ranks.
    """
    return range(start + rank * batch, stop, world_size * batch)
