"""Shared memory of batches: used again, but never while anything refers to a batch in it."""

import gc
import weakref

import pytest
import torch

from imagenet_rn50.data.batch_memory import Mappings, WorkerMemory, receive
from imagenet_rn50.data.loader import build_loader
from imagenet_rn50.data.sampler import DistributedBatchSampler
from imagenet_rn50.data.transforms import EvalTransform
from tests.support import write_shards

SHAPE = (2, 4, 4, 3)


@pytest.fixture
def mappings():
    return Mappings()


@pytest.fixture
def worker(mappings):
    return WorkerMemory(mappings.name)


def hand_over(worker, shape=SHAPE, dtype=torch.uint8):
    """A batch as the training process gets it, after the worker has dropped its own."""
    return receive(*worker.send(worker.empty(shape, dtype).fill_(7)))


def address(tensor):
    return tensor.untyped_storage().data_ptr()


def test_a_batch_arrives_with_its_values_shape_and_type(worker):
    images = worker.empty(SHAPE, torch.float32).permute(0, 3, 1, 2)
    images.copy_(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    received = receive(*worker.send(images))
    assert received.is_contiguous(memory_format=torch.channels_last)
    assert received.dtype == torch.float32
    assert torch.equal(received, images)


def test_memory_is_used_again_once_a_batch_is_gone(worker):
    first = address(hand_over(worker))
    assert address(hand_over(worker)) == first


def test_memory_of_a_batch_that_is_kept_is_not_written(worker):
    kept = hand_over(worker)
    others = [hand_over(worker), hand_over(worker)]
    worker.empty(SHAPE, torch.uint8).fill_(9)
    assert len({address(batch) for batch in (kept, *others)}) == 3
    assert (kept == 7).all()


def test_a_view_keeps_the_memory_of_its_batch(worker):
    received = hand_over(worker)
    row, used = received[1], address(received)
    del received
    gc.collect()
    assert address(worker.empty(SHAPE, torch.uint8)) != used
    assert (row == 7).all()
    del row
    assert address(worker.empty(SHAPE, torch.uint8)) == used


def test_memory_of_a_batch_that_the_worker_still_refers_to_is_not_written(worker):
    images = worker.empty(SHAPE, torch.uint8)
    receive(*worker.send(images))
    assert address(worker.empty(SHAPE, torch.uint8)) != address(images)


def test_a_batch_that_was_never_sent_frees_its_memory(worker):
    used = address(worker.empty(SHAPE, torch.uint8))
    assert address(worker.empty(SHAPE, torch.uint8)) == used


def test_a_smaller_batch_uses_the_memory_of_a_larger_one(worker):
    used = address(hand_over(worker))
    assert address(hand_over(worker, (1, 4, 4, 3))) == used


def test_memory_that_became_too_small_is_returned_to_the_system(worker):
    images = worker.empty(SHAPE, torch.uint8)
    arguments = worker.send(images)
    small = weakref.ref(arguments[4].untyped_storage())
    receive(*arguments)
    del images, arguments
    hand_over(worker, (4, 4, 4, 3))
    gc.collect()
    assert small() is None


def test_a_batch_outlives_the_loader_that_received_it(worker, mappings):
    kept = hand_over(worker)
    mappings.clear()
    del mappings, worker
    gc.collect()
    assert (kept == 7).all()


def test_memory_that_is_not_shared_is_not_sent(worker):
    assert worker.send(torch.zeros(SHAPE)) is None


def test_batches_are_right_while_some_are_kept_and_others_dropped(tmp_path):
    splits = write_shards(tmp_path, train=[1], validation=[30, 30]).splits
    split, share = splits["validation"], DistributedBatchSampler(0, 60, 3)
    transform = EvalTransform(18, 16)
    expected = list(build_loader(tmp_path, split, share, transform))
    loader = build_loader(tmp_path, split, share, transform, num_workers=2)
    kept = []
    for _ in range(2):  # passes
        for number, batch in enumerate(loader):
            assert torch.equal(batch.images, expected[number].images)
            assert torch.equal(batch.labels, expected[number].labels)
            assert torch.equal(batch.indices, expected[number].indices)
            if number % 3 == 0:
                kept.append((number, batch.images[-1]))
    loader.close()
    assert all(torch.equal(row, expected[number].images[-1]) for number, row in kept)
