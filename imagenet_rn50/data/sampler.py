"""The order: which sample is at which position of the stream, and which positions a rank reads.

A pure function of (shard sizes, seed, epoch, window), as in mosaicml/streaming's `py1e` shuffle.
Shards are permuted, then samples are permuted within a sliding window of shards, so that reading
stays nearly sequential while batches stay well mixed. The training stream is the concatenation of
the epochs' permutations: nothing is dropped or padded, and a batch may straddle two epochs. So to
resume is to start at another position.

Random numbers are raw 64-bit output of Philox, whose stream NumPy guarantees (NEP 19), unlike the
results of `Generator.permutation`; so an order is the same in every version.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_ORDER_STREAM = 0  # each purpose has a stream of its own, so equal seeds never share numbers
_CACHED_EPOCHS = 2


@dataclass(frozen=True)
class DistributedBatchSampler:
    """The positions that one rank reads, in batches.

    Consecutive batches go to consecutive ranks, so that the samples of a global batch are the same
    for any number of ranks. The ranks' numbers of batches may differ by one, and the last batch may
    be shorter: no position is dropped or repeated.

    Args:
        start: First position of all ranks.
        stop: One past the last position.
        batch: Samples per batch.
        rank: This rank, from 0.
        world_size: Number of ranks.
    """

    start: int
    stop: int
    batch: int
    rank: int = 0
    world_size: int = 1

    @property
    def starts(self) -> range:
        """Positions at which this rank's batches begin."""
        first = self.start + self.rank * self.batch
        return range(first, self.stop, self.world_size * self.batch)

    def size_at(self, start: int) -> int:
        """Return how many samples the batch that begins at `start` has."""
        return min(self.batch, self.stop - start)


class Order(Protocol):
    """Which sample is at a position, and which shards are in use there.

    Shards have turns: turn t is the t-th shard of the stream, epoch after epoch.
    """

    def indices(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return epochs and sample indices of positions first, ..., first + count - 1."""

    def active_shards(self, position: int) -> range:
        """Return the turns of the shards that may be in use at a position."""

    def shard_at(self, turn: int) -> int:
        """Return the shard of a turn.

        Raises:
            IndexError: After the last turn, if the stream ends.
        """


class SequentialSampler:
    """The samples in the order of the shards, once: the order of evaluation.

    Args:
        shard_sizes: Number of samples of each shard; (num_shards,) int64.
    """

    def __init__(self, shard_sizes: NDArray[np.int64]) -> None:
        self._stops = np.cumsum(shard_sizes)

    def indices(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return zeros, and the positions themselves, each (count,) int64."""
        return np.zeros(count, np.int64), np.arange(first, first + count)

    def active_shards(self, position: int) -> range:
        """Return the turn of the one shard that is in use at a position."""
        turn = int(np.searchsorted(self._stops, position, side="right"))
        return range(turn, turn + 1)

    def shard_at(self, turn: int) -> int:
        """Return the shard of a turn: each has one, in order.

        Raises:
            IndexError: After the last shard.
        """
        if turn >= len(self._stops):
            raise IndexError(turn)
        return turn


class ShardShuffleSampler:
    """The endless stream of training samples, addressed by position.

    Its only state is a cache of the last epochs' permutations.

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
        """Return epochs and sample indices of positions first, ..., first + count - 1.

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
        """Return the turns of the shards that may be in use at a position.

        Samples stray from their shard by half a window, so this many shards on both sides of the
        position's own shard are in use; at the end of an epoch also those of the next.
        """
        num_shards = len(self._shard_sizes)
        turn = position * num_shards / self.num_samples
        reach = min(self._window, num_shards) / 2 + 1
        return range(max(0, int(turn - reach)), int(turn + reach) + 1)

    def shard_at(self, turn: int) -> int:
        """Return the shard of a turn; every shard has one turn per epoch."""
        epoch, number = divmod(turn, len(self._shard_sizes))
        if epoch not in self._sequences:
            rng = _order_rng(self._seed, epoch)
            self._sequences[epoch] = _permutation(rng, len(self._shard_sizes))
            if len(self._sequences) > _CACHED_EPOCHS:
                self._sequences.popitem(last=False)
        return int(self._sequences[epoch][number])

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            self._orders[epoch] = epoch_order(
                self._shard_sizes, seed=self._seed, epoch=epoch, window=self._window
            )
            if len(self._orders) > _CACHED_EPOCHS:
                self._orders.popitem(last=False)
        return self._orders[epoch]


def epoch_order(
    shard_sizes: NDArray[np.int64], *, seed: int, epoch: int, window: int
) -> NDArray[np.int64]:
    """Return the permutation of one epoch.

    A sample of the k-th shard of the epoch gets a position drawn uniformly from k +- window / 2,
    reflected at both ends; sorting by it mixes each sample with those of about `window` shards,
    equally at the ends and in the middle.

    Args:
        shard_sizes: Number of samples of each shard; (num_shards,) int64.
        seed: The recipe's seed.
        epoch: Epoch, from 0.
        window: How many neighbouring shards are mixed with each other, at least 1.

    Returns:
        Sample indices in the order of the epoch; (n,) int64, a permutation of 0..n-1.
    """
    num_shards = len(shard_sizes)
    rng = _order_rng(seed, epoch)
    turn_of_shard = np.empty(num_shards, np.int64)
    turn_of_shard[_permutation(rng, num_shards)] = np.arange(num_shards)

    num_samples = int(shard_sizes.sum())
    uniform = (rng.random_raw(num_samples) >> np.uint64(11)) * 2.0**-53  # [0, 1)
    middle = np.repeat(turn_of_shard, shard_sizes) + 0.5
    spread = min(window, num_shards)
    position = np.abs(middle + (uniform - 0.5) * spread)
    position = np.where(position > num_shards, 2 * num_shards - position, position)
    return np.argsort(position, kind="stable")


def _order_rng(seed: int, epoch: int) -> np.random.Philox:
    """Return the rng of an epoch: its first numbers permute shards, the next ones place samples."""
    return np.random.Philox(np.random.SeedSequence([seed, epoch, _ORDER_STREAM]))


def _permutation(rng: np.random.Philox, count: int) -> NDArray[np.int64]:
    return np.argsort(rng.random_raw(count), kind="stable")
