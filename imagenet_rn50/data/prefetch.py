"""Read whole shards ahead, front to back.

Samples are read at random within a window of shards, which is slow on a cold disk; so a thread
reads each shard into the page cache (or downloads it) before its turn. The kernel reads only a few
MB per advice, however long its range, so it advises in small pieces, which costs almost nothing if
the bytes are in memory already.
"""

from __future__ import annotations

import logging
import os
import threading

from imagenet_rn50.data.sampler import Order
from imagenet_rn50.shards.manifest import Split
from imagenet_rn50.shards.store import ShardStore, open_shard
from imagenet_rn50.utils.errors import InputError

_PIECE_BYTES = 128 << 10  # what the least read-ahead limit in use lets one advice read
_SHARDS_AHEAD = 2

log = logging.getLogger(__name__)


class Prefetcher:
    """Read the shards of one loader worker ahead, in a thread.

    Args:
        store: Opens the shards.
        split: The manifest of the split.
        order: When each shard is needed.
        worker: This worker, from 0: it reads every `num_workers`-th turn.
        num_workers: Number of workers.
    """

    def __init__(
        self, store: ShardStore, split: Split, order: Order, worker: int, num_workers: int
    ) -> None:
        self._store = store
        self._split = split
        self._order = order
        self._worker = worker
        self._num_workers = num_workers
        self._position: int | None = None
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def advance(self, position: int) -> None:
        """Set the position of the stream that is read now; the first call starts the thread."""
        with self._changed:
            started, self._position = self._position is not None, position
            self._changed.notify()
        if not started:
            self._thread.start()

    def close(self) -> None:
        """Stop reading ahead, after the piece or the download that is under way."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _run(self) -> None:
        """Read turn after turn, never further ahead than necessary."""
        turn = -1
        try:
            while (position := self._next_position(turn)) is not None:
                turn = max(turn + 1, self._order.active_shards(position).start)
                if turn % self._num_workers == self._worker:
                    self._read(self._order.shard_at(turn))
        except IndexError:  # the last turn is done
            return
        except (InputError, OSError) as error:
            # The reader that needs the shard meets the same error, and can name the sample.
            log.debug("reading ahead stopped: %s", error)

    def _next_position(self, turn: int) -> int | None:
        """Wait until the turn after `turn` is near; returns the position, or None to stop."""
        with self._changed:
            while not self._stopped:
                assert self._position is not None
                near = self._order.active_shards(self._position).stop + self._ahead
                if turn + 1 < near:
                    return self._position
                self._changed.wait()
        return None

    @property
    def _ahead(self) -> int:
        """How many turns before its use a shard is read: all workers have one each in hand."""
        return self._num_workers + _SHARDS_AHEAD

    def _read(self, shard: int) -> None:
        """Read a shard's samples into memory; without `posix_fadvise`, only download the shard.

        Samples that a subset leaves out are not read.
        """
        descriptor = open_shard(self._store, self._split, shard)
        samples = slice(*self._split.shard_starts[shard : shard + 2].tolist())
        offsets, lengths = self._split.offsets[samples], self._split.lengths[samples]
        try:
            if not hasattr(os, "posix_fadvise"):
                return
            for begin, end in zip(offsets.tolist(), (offsets + lengths).tolist(), strict=True):
                for piece in range(begin, end, _PIECE_BYTES):
                    if self._stopped:
                        return
                    num_bytes = min(_PIECE_BYTES, end - piece)
                    os.posix_fadvise(descriptor, piece, num_bytes, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def least_cache_bytes(split: Split, order: Order, num_workers: int) -> int:
    """Return how much space a cache of shards needs, so that none is fetched twice an epoch."""
    in_use = len(order.active_shards(split.num_samples // 2)) + max(num_workers, 1) + _SHARDS_AHEAD
    largest = sorted((shard.num_bytes for shard in split.shards), reverse=True)
    return sum(largest[:in_use])
