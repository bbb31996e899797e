import time

import numpy as np
import pytest
import torch
from PIL import Image

from imagenet_rn50.data.loader import build_loader
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.data.transforms import EvalTransform, TrainTransform
from imagenet_rn50.model import build_processor
from imagenet_rn50.recipe import DataRecipe
from tests.support import jpeg_bytes, write_shards

pytestmark = pytest.mark.numeric

DATA = DataRecipe(train_size=16, eval_size=16, eval_resize=18, shuffle_window=2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return folder, write_shards(folder, train=[7, 0, 9, 5], validation=[5, 6]).splits


def training_batches(shards, *, rank=0, world_size=1, num_workers=0, start=0, stop=42):
    folder, splits = shards
    train = splits["train"]
    share = DistributedBatchSampler(
        start=start, stop=stop, batch=6, rank=rank, world_size=world_size
    )
    order = ShardShuffleSampler(train.shard_sizes, seed=3, window=2)
    transform = TrainTransform(DATA, seed=3)
    return list(build_loader(folder, train, share, transform, order=order, num_workers=num_workers))


def assert_equal_batches(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_pixels_and_order_do_not_depend_on_the_number_of_workers(shards, num_workers):
    assert_equal_batches(
        training_batches(shards), training_batches(shards, num_workers=num_workers)
    )


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_read_what_one_rank_reads(shards, world_size):
    ranks = [
        training_batches(shards, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    alone = training_batches(shards)
    together = [ranks[k % world_size][k // world_size] for k in range(len(alone))]
    assert_equal_batches(alone, together)


def test_starting_in_the_middle_goes_on_with_the_very_next_sample(shards):
    assert_equal_batches(training_batches(shards)[2:], training_batches(shards, start=12))


def test_two_epochs_show_every_sample_twice_with_its_own_label(shards):
    batches = training_batches(shards)
    indices = torch.cat([batch.indices for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    assert sorted(indices.tolist()) == sorted(2 * list(range(21)))
    assert torch.equal(labels, indices % 3)


def test_a_sample_looks_different_in_every_epoch(shards):
    folder, splits = shards
    transform = TrainTransform(DATA, seed=3)
    content = jpeg_bytes(4)
    first, again, later = (transform(content, epoch, 4) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_reads_every_sample_once_in_the_order_of_the_shards(shards, num_workers):
    folder, splits = shards
    share = DistributedBatchSampler(start=0, stop=11, batch=4)
    transform = EvalTransform(resize=18, size=16)
    loader = build_loader(folder, splits["validation"], share, transform, num_workers=num_workers)
    assert torch.cat([batch.indices for batch in loader]).tolist() == list(range(11))


@pytest.mark.parametrize(("height", "width"), [(24, 32), (33, 24), (20, 20), (19, 61), (47, 18)])
def test_evaluation_pixels_equal_those_of_the_shipped_processor(tmp_path, height, width):
    content = jpeg_bytes(5, height, width)
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    ours = EvalTransform(resize=18, size=16)(content, 0, 0)
    processor = build_processor(DATA)
    with Image.open(path) as image:
        theirs = processor(
            image, do_normalize=False, do_rescale=False, return_tensors="pt"
        ).pixel_values[0]
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_a_stage_of_the_users_may_change_pictures(shards):
    folder, splits = shards

    def shrink(samples):
        for sample in samples:
            yield sample | {"image": sample["image"][:, ::2, ::2]}

    transform = EvalTransform(18, 16)
    arguments = (folder, splits["validation"], DistributedBatchSampler(0, 4, 4), transform)
    (plain,) = build_loader(*arguments)
    (shrunk,) = build_loader(*arguments, stages=[shrink])
    assert torch.equal(shrunk.images, plain.images[:, :, ::2, ::2])


def test_the_loader_says_how_fast_it_was_and_how_long_it_was_waited_for(shards):
    folder, splits = shards
    loader = build_loader(
        folder, splits["validation"], DistributedBatchSampler(0, 11, 4), EvalTransform(18, 16)
    )
    for _ in loader:
        time.sleep(0.02)
    stats = loader.stats()
    assert stats.images == 11
    assert stats.seconds >= 0.06
    assert 0 < stats.waited_seconds < stats.seconds
    assert stats.images_per_s == pytest.approx(11 / stats.seconds)
    assert loader.stats().images == 0


def test_workers_live_on_for_the_next_pass(shards):
    folder, splits = shards
    share = DistributedBatchSampler(0, 11, 4)
    loader = build_loader(folder, splits["validation"], share, EvalTransform(18, 16), num_workers=1)
    processes = set()
    for _ in range(2):
        assert torch.cat([batch.indices for batch in loader]).tolist() == list(range(11))
        processes.add(loader.web_loader.pipeline[0]._iterator._workers[0].pid)
    assert len(processes) == 1


def test_a_pass_that_was_left_halfway_does_not_disturb_the_next(shards):
    folder, splits = shards
    loader = build_loader(
        folder,
        splits["validation"],
        DistributedBatchSampler(0, 11, 2),
        EvalTransform(18, 16),
        num_workers=2,
    )
    next(iter(loader))
    assert torch.cat([batch.indices for batch in loader]).tolist() == list(range(11))


def test_batches_are_channels_last_in_memory(shards):
    (batch, *_) = training_batches(shards)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
