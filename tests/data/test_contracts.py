"""Contracts 1, 2 and 4, for any layout: the stages run here as DataLoader runs them, in turns."""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_rn50.data import dataset as stages
from imagenet_rn50.data.dataset import Collate, DecodeAndTransform, ReadSamples
from imagenet_rn50.data.sampler import (
    DistributedBatchSampler,
    SequentialSampler,
    ShardShuffleSampler,
)
from imagenet_rn50.shards.manifest import Shard, Split
from imagenet_rn50.shards.store import LocalShards

sizes_of_shards = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(sum)
seeds = st.integers(0, 2**63 - 1)
world_sizes = st.integers(1, 16)
worker_counts = st.integers(0, 5)
windows = st.integers(1, 10)
batch_sizes = st.integers(1, 8)


def split_of(sizes):
    n = sum(sizes)
    return Split(
        shards=tuple(Shard(f"{k}.tar", size, 0, "") for k, size in enumerate(sizes)),
        offsets=np.zeros(n, np.int64),
        lengths=np.zeros(n, np.int32),
        labels=(np.arange(n) % 5).astype(np.int32),
        keys=np.array([b"%d" % i for i in range(n)], dtype="S8"),
    )


class FakeReader:
    """Reads each sample's index instead of its JPEG."""

    def __init__(self, store, split):
        self.read_indices = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def read(self, index):
        return b"%d" % index

    def describe_sample(self, index):
        return f"sample {index}"


class FakePrefetcher:
    """Fetches nothing; a Mock would take longer than all that is tested."""

    def __init__(self, store, split, order, number, num_workers):
        pass

    def advance(self, start):
        pass

    def close(self):
        pass


class FakeTransform:
    """Paints an image with numbers that depend on what a transform may depend on."""

    dtype = torch.uint8

    def size_at(self, epoch):
        return 2

    def __call__(self, content, epoch, index, out=None):
        assert int(content) == index
        draws = np.random.default_rng([epoch, index]).integers(0, 256, (3, 2, 2), dtype=np.uint8)
        return out.copy_(torch.from_numpy(draws))


def batches_of_rank(split, order, share, num_workers):
    """What a DataLoader of `num_workers` workers yields: one batch of each in turn."""
    workers = []
    for number in range(max(num_workers, 1)):
        info = SimpleNamespace(id=number, num_workers=num_workers) if num_workers else None
        with (
            mock.patch.object(stages, "get_worker_info", return_value=info),
            mock.patch.object(stages, "keep_freed_memory"),
            mock.patch.object(stages, "Prefetcher", FakePrefetcher),
            mock.patch.object(stages, "ShardReader", FakeReader),
        ):
            source = ReadSamples(LocalShards(Path()), split, share, order)
            workers.append(list(Collate()(DecodeAndTransform(FakeTransform())(source()))))
    batches, turn = [], 0
    while workers[turn % len(workers)]:
        batches.append(workers[turn % len(workers)].pop(0))
        turn += 1
    assert not any(workers)
    return batches


def stream(split, order, *, start, stop, batch, world_size, num_workers):
    """The batches of all ranks, in the order of a global step."""
    ranks = [
        batches_of_rank(
            split,
            order,
            DistributedBatchSampler(start, stop, batch, rank, world_size),
            num_workers,
        )
        for rank in range(world_size)
    ]
    longest = max(len(batches) for batches in ranks)
    return [batches[k] for k in range(longest) for batches in ranks if k < len(batches)]


def joined(batches):
    if not batches:
        return torch.empty(0), torch.empty(0), torch.empty(0)
    return tuple(torch.cat([batch[field] for batch in batches]) for field in range(3))


@settings(max_examples=20, deadline=None)
@given(
    sizes=sizes_of_shards,
    seed=seeds,
    window=windows,
    batch=batch_sizes,
    world_size=world_sizes,
    num_workers=worker_counts,
    epochs=st.integers(1, 3),
)
def test_every_epoch_shows_every_sample_once_on_any_layout(
    sizes, seed, window, batch, world_size, num_workers, epochs
):
    split, n = split_of(sizes), sum(sizes)
    order = ShardShuffleSampler(split.shard_sizes, seed=seed, window=window)
    _, labels, indices = joined(
        stream(
            split,
            order,
            start=0,
            stop=epochs * n,
            batch=batch,
            world_size=world_size,
            num_workers=num_workers,
        )
    )
    for epoch in range(epochs):
        assert sorted(indices[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))
    assert torch.equal(labels, indices % 5)


@settings(max_examples=20, deadline=None)
@given(
    sizes=sizes_of_shards,
    seed=seeds,
    window=windows,
    batch=batch_sizes,
    layouts=st.lists(st.tuples(world_sizes, worker_counts), min_size=1, max_size=4),
    data=st.data(),
)
def test_stopping_anywhere_and_going_on_with_another_layout_changes_nothing(
    sizes, seed, window, batch, layouts, data
):
    split, n = split_of(sizes), sum(sizes)
    order = ShardShuffleSampler(split.shard_sizes, seed=seed, window=window)
    end = 2 * n
    expected = joined(
        stream(split, order, start=0, stop=end, batch=batch, world_size=1, num_workers=0)
    )
    pieces, start = [], 0
    for number, (world_size, num_workers) in enumerate(layouts):
        last = number == len(layouts) - 1
        stop = end if last else data.draw(st.integers(start, end))
        pieces += stream(
            split,
            ShardShuffleSampler(split.shard_sizes, seed=seed, window=window),
            start=start,
            stop=stop,
            batch=batch,
            world_size=world_size,
            num_workers=num_workers,
        )
        start = stop
    for ours, theirs in zip(joined(pieces), expected, strict=True):
        assert torch.equal(ours, theirs)


@settings(max_examples=20, deadline=None)
@given(sizes=sizes_of_shards, batch=batch_sizes, world_size=world_sizes, num_workers=worker_counts)
def test_evaluation_counts_every_sample_once_and_shares_batches_evenly(
    sizes, batch, world_size, num_workers
):
    split, n = split_of(sizes), sum(sizes)
    ranks = [
        batches_of_rank(
            split,
            SequentialSampler(split.shard_sizes),
            DistributedBatchSampler(0, n, batch, rank, world_size),
            num_workers,
        )
        for rank in range(world_size)
    ]
    counts = [len(batches) for batches in ranks]
    assert max(counts) - min(counts) <= 1
    _, labels, indices = joined([batch_ for batches in ranks for batch_ in batches])
    assert sorted(indices.tolist()) == list(range(n))
    assert torch.equal(labels, indices % 5)
