import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler, epoch_order

sizes_of_shards = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(sum)
seeds = st.integers(0, 2**63 - 1)


@given(sizes=sizes_of_shards, seed=seeds, epoch=st.integers(0, 1000), window=st.integers(1, 20))
def test_an_epoch_is_a_permutation_of_all_samples(sizes, seed, epoch, window):
    order = epoch_order(np.array(sizes), seed=seed, epoch=epoch, window=window)
    assert sorted(order.tolist()) == list(range(sum(sizes)))


@given(sizes=sizes_of_shards, seed=seeds, window=st.integers(1, 20))
def test_the_stream_is_the_concatenation_of_the_epochs(sizes, seed, window):
    n = sum(sizes)
    order = ShardShuffleSampler(np.array(sizes), seed=seed, window=window)
    epochs, indices = order.indices(0, 3 * n)
    assert epochs.tolist() == [epoch for epoch in range(3) for _ in range(n)]
    for epoch in range(3):
        assert sorted(indices[epochs == epoch].tolist()) == list(range(n))


@given(
    sizes=sizes_of_shards,
    seed=seeds,
    start=st.integers(0, 500),
    batch=st.integers(1, 16),
    world_size=st.integers(1, 16),
    num_workers=st.integers(1, 5),
    length=st.integers(0, 300),
)
def test_ranks_and_workers_take_turns_over_the_same_batches(
    sizes, seed, start, batch, world_size, num_workers, length
):
    stop = start + length
    seen = {}
    for rank in range(world_size):
        starts = DistributedBatchSampler(start, stop, batch, rank, world_size).starts
        for turn, first in enumerate(starts):
            assert first in starts[turn % num_workers :: num_workers]
            seen[turn * world_size + rank] = first
    assert [seen[k] for k in sorted(seen)] == list(range(start, stop, batch))
    assert sorted(seen) == list(range(len(seen)))


def test_seed_and_epoch_change_the_order_and_nothing_else_does():
    sizes = np.full(10, 50)
    first = epoch_order(sizes, seed=1, epoch=0, window=4)
    np.testing.assert_array_equal(first, epoch_order(sizes, seed=1, epoch=0, window=4))
    assert (first != epoch_order(sizes, seed=1, epoch=1, window=4)).mean() > 0.9
    assert (first != epoch_order(sizes, seed=2, epoch=0, window=4)).mean() > 0.9


def test_a_batch_reads_from_no_more_shards_than_its_window_allows():
    sizes, window = np.full(200, 50), 8
    order = epoch_order(sizes, seed=0, epoch=0, window=window)
    shards = order // 50
    for first in range(0, len(order), 50):
        assert len(np.unique(shards[first : first + 50])) <= window + 4


def test_the_order_of_a_seed_never_changes():
    # A changed value here would break the resume of every run under way.
    order = epoch_order(np.array([3, 4, 5]), seed=7, epoch=2, window=2)
    assert order.tolist() == [2, 0, 1, 5, 10, 11, 6, 8, 3, 4, 9, 7]


@pytest.fixture(scope="module")
def sorted_classes():
    """An order over 200 shards of 50 samples, packed class by class: 100 classes of 100 samples."""
    order = epoch_order(np.full(200, 50), seed=0, epoch=0, window=32)
    return order, order // 100


def test_batches_hold_nearly_as_many_classes_as_random_draws(sorted_classes):
    # The worst case: shards packed class by class. Packing shuffles, so real batches are better.
    _, classes = sorted_classes
    batches = classes[: len(classes) // 256 * 256].reshape(-1, 256)
    distinct = np.mean([len(np.unique(batch)) for batch in batches])
    draws = np.random.default_rng(0).permutation(classes)[: batches.size].reshape(-1, 256)
    random = np.mean([len(np.unique(batch)) for batch in draws])
    # 32 of 200 shards are 16 of 100 classes, and some stray in: no window can give more.
    assert distinct >= 16
    assert random > 90


def test_batches_of_shuffled_shards_are_as_even_as_random_draws():
    # As packing makes them: which class stands where is random.
    rng = np.random.default_rng(1)
    classes = rng.permutation(np.repeat(np.arange(100), 100))
    order = epoch_order(np.full(200, 50), seed=0, epoch=0, window=32)
    expected = 256 / 100

    def unevenness(sequence):
        batches = sequence[: len(sequence) // 256 * 256].reshape(-1, 256)
        counts = np.stack([np.bincount(batch, minlength=100) for batch in batches])
        return ((counts - expected) ** 2 / expected).sum(axis=1).mean()  # chi squared, 99 df

    ours, drawn = unevenness(classes[order]), unevenness(rng.permutation(classes))
    assert ours == pytest.approx(drawn, rel=0.05)


def test_neighbours_in_the_source_are_seldom_neighbours_in_the_order(sorted_classes):
    order, _ = sorted_classes
    distance = np.abs(np.diff(order))
    assert (distance == 1).mean() < 0.01
    assert np.median(distance) > 50 * 32  # shards of one window come from everywhere


def test_the_order_of_imagenet_takes_less_than_half_a_second_and_little_memory():
    sizes = np.full(1024, 1251)
    sizes[-1] -= sizes.sum() - 1_281_167
    epoch_order(sizes, seed=0, epoch=0, window=32)
    seconds = []
    for epoch in range(3):
        began = time.process_time()
        epoch_order(sizes, seed=0, epoch=epoch, window=32)
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.5
    tracemalloc.start()
    epoch_order(sizes, seed=0, epoch=0, window=32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
