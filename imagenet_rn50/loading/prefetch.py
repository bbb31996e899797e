"""Reading ahead: whole shards, front to back, just before they come into use.

Samples are read at random within a window of shards, which a cold disk serves badly; so a thread
brings each shard into the page cache (or a remote one onto this machine) before its turn.

The kernel reads only some MB for one piece of advice, however long a range it names. So the advice
is given in small pieces, which costs next to nothing where the bytes are in memory already.
"""

from __future__ import annotations

import logging
import os
import threading

from imagenet_rn50.errors import InputError
from imagenet_rn50.loading.order import Order
from imagenet_rn50.loading.reader import open_shard
from imagenet_rn50.loading.store import ShardStore
from imagenet_rn50.shards.manifest import Split

_PIECE_BYTES = 128 << 10  # what the least read-ahead limit in use lets one advice read
_SHARDS_AHEAD = 2

log = logging.getLogger(__name__)


class Prefetcher:
    """Reads the shards of one loader worker's share of the turns ahead.

    Args:
        store: Where the shards stand.
        split: What stands in them.
        order: When their turns come.
        worker: This worker, from 0: it reads every `num_workers`-th turn.
        num_workers: Workers that share the turns.
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
        """Says which position of the stream is read now; the first call starts the thread."""
        with self._changed:
            started, self._position = self._position is not None, position
            self._changed.notify()
        if not started:
            self._thread.start()

    def close(self) -> None:
        """Stops reading ahead, after the piece or the download that is under way."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _run(self) -> None:
        """Reads turn after turn, never further ahead than necessary."""
        turn = -1
        try:
            while (position := self._next_position(turn)) is not None:
                turn = max(turn + 1, self._order.turns_at(position).start)
                if turn % self._num_workers == self._worker:
                    self._read(self._order.shard_of_turn(turn))
        except IndexError:  # the last turn is done
            return
        except (InputError, OSError) as error:
            # Whoever needs the shard meets the same error, and can say for which sample.
            log.debug("reading ahead stopped: %s", error)

    def _next_position(self, turn: int) -> int | None:
        """Waits until the turn after `turn` is near; returns the position, or None to stop."""
        with self._changed:
            while not self._stopped:
                assert self._position is not None
                near = self._order.turns_at(self._position).stop + self._ahead
                if turn + 1 < near:
                    return self._position
                self._changed.wait()
        return None

    @property
    def _ahead(self) -> int:
        """How many turns before its use a shard is read: all workers have one each in hand."""
        return self._num_workers + _SHARDS_AHEAD

    def _read(self, shard: int) -> None:
        """Brings one shard into memory, or only onto this machine where advice is unknown."""
        descriptor = open_shard(self._store, self._split, shard)
        try:
            if not hasattr(os, "posix_fadvise"):
                return
            for offset in range(0, self._split.shards[shard].num_bytes, _PIECE_BYTES):
                if self._stopped:
                    return
                os.posix_fadvise(descriptor, offset, _PIECE_BYTES, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def least_cache_bytes(split: Split, order: Order, num_workers: int) -> int:
    """Returns how much space a cache of shards needs, so that none is fetched twice an epoch."""
    in_use = len(order.turns_at(split.num_samples // 2)) + max(num_workers, 1) + _SHARDS_AHEAD
    largest = sorted((shard.num_bytes for shard in split.shards), reverse=True)
    return sum(largest[:in_use])
