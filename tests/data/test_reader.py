import os
import threading
import time

import numpy as np
import psutil
import pytest

from imagenet_rn50.data import prefetch
from imagenet_rn50.data.prefetch import Prefetcher, least_cache_bytes
from imagenet_rn50.data.reader import ShardReader
from imagenet_rn50.data.sampler import SequentialSampler, ShardShuffleSampler
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.utils.errors import InputError
from tests.support import jpeg_bytes, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return LocalShards(folder), write_shards(folder, train=[3] * 12, validation=[1]).splits["train"]


def num_open_files():
    return psutil.Process().num_fds()


def test_no_more_shards_are_open_than_allowed(shards):
    store, split = shards
    before = num_open_files()
    with ShardReader(store, split, max_open=4) as reader:
        for index in (*range(36), *range(35, -1, -1)):
            assert reader.read(index) == jpeg_bytes(index)
            assert num_open_files() <= before + 4
    assert num_open_files() == before


def test_a_shard_that_vanishes_again_and_again_is_named(shards, tmp_path):
    store, split = shards

    class Vanishing(LocalShards):
        def fetch(self, shard):
            return tmp_path / shard.name

    with (
        ShardReader(Vanishing(tmp_path), split) as reader,
        pytest.raises(InputError, match="vanished"),
    ):
        reader.read(0)


class RecordingStore(LocalShards):
    """Notes which shards are fetched, in which order."""

    fetched: list[str]
    changed: threading.Condition

    def __init__(self, store):
        super().__init__(store.folder)
        vars(self).update(fetched=[], changed=threading.Condition())

    def fetch(self, shard):
        with self.changed:
            self.fetched.append(shard.name)
            self.changed.notify()
        return super().fetch(shard)

    def wait_for(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.fetched) >= count, timeout=10)
        time.sleep(0.05)  # for a fetch too many to show
        return self.fetched


def test_shards_are_read_ahead_in_the_order_of_their_turns_and_no_further(shards):
    store, split = RecordingStore(shards[0]), shards[1]
    order = ShardShuffleSampler(split.shard_sizes, seed=0, window=2)
    prefetcher = Prefetcher(store, split, order, worker=0, num_workers=1)
    try:
        for position in range(0, 60, 6):
            prefetcher.advance(position)
            turns = range(order.active_shards(position).stop + 1 + 2)
            expected = [split.shards[order.shard_at(turn)].name for turn in turns]
            assert store.wait_for(len(expected)) == expected
    finally:
        prefetcher.close()


def test_workers_share_the_turns_between_them(shards):
    order = ShardShuffleSampler(shards[1].shard_sizes, seed=0, window=2)
    stores = [RecordingStore(shards[0]) for _ in range(3)]
    prefetchers = [Prefetcher(store, shards[1], order, k, 3) for k, store in enumerate(stores)]
    for prefetcher in prefetchers:
        prefetcher.advance(0)
    turns = range(order.active_shards(0).stop + 3 + 2)
    for k, store in enumerate(stores):
        mine = [shards[1].shards[order.shard_at(turn)].name for turn in turns[k::3]]
        assert store.wait_for(len(mine)) == mine
    for prefetcher in prefetchers:
        prefetcher.close()


def test_a_resumed_run_reads_ahead_only_what_is_still_in_use(shards):
    store, split = RecordingStore(shards[0]), shards[1]
    order = SequentialSampler(split.shard_sizes)
    prefetcher = Prefetcher(store, split, order, 0, 1)
    prefetcher.advance(30)
    assert store.wait_for(2) == ["tiny-train-10.tar", "tiny-train-11.tar"]
    prefetcher._thread.join(timeout=10)
    assert not prefetcher._thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="there is no such advice")
def test_every_byte_of_the_samples_and_of_no_other_is_read_ahead_in_small_pieces(
    shards, monkeypatch
):
    store, split = shards
    chosen = split.select(np.array([0, 2, 5]))
    advice = []
    monkeypatch.setattr(prefetch, "_PIECE_BYTES", 100)
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: advice.append(arguments[1:3]))
    Prefetcher(store, chosen, SequentialSampler(chosen.shard_sizes), 0, 1)._read(0)
    advised = [byte for offset, length in advice for byte in range(offset, offset + length)]
    spans = zip(chosen.offsets[:2].tolist(), chosen.lengths[:2].tolist(), strict=True)
    assert advised == [byte for begin, length in spans for byte in range(begin, begin + length)]
    assert max(length for _, length in advice) == 100


def test_a_cache_must_hold_the_shards_in_use_and_those_ahead(shards):
    split = shards[1]
    order = ShardShuffleSampler(split.shard_sizes, seed=0, window=2)
    one = split.shards[0].num_bytes
    assert 4 * one < least_cache_bytes(split, order, num_workers=2) < 12 * one


def test_turns_cover_the_shards_of_every_batch():
    sizes = np.full(60, 20)
    order = ShardShuffleSampler(sizes, seed=4, window=8)
    for position in range(0, 3 * 1200 - 10, 7):
        _, indices = order.indices(position, 10)
        here = {order.shard_at(turn) for turn in order.active_shards(position)}
        assert set((indices // 20).tolist()) <= here
