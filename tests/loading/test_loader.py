import numpy as np
import pytest
import torch
from PIL import Image

from imagenet_rn50.errors import InputError
from imagenet_rn50.loading.loader import Share, make_loader
from imagenet_rn50.loading.order import TrainingOrder
from imagenet_rn50.loading.transforms import EvalTransform, TrainTransform
from imagenet_rn50.model import build_processor
from imagenet_rn50.recipe import DataRecipe
from tests.support import jpeg_bytes, write_shards

DATA = DataRecipe(train_size=16, eval_size=16, eval_resize=18, shuffle_window=2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return folder, write_shards(folder, train=[7, 0, 9, 5], validation=[5, 6]).splits


def training_batches(shards, *, rank=0, world_size=1, num_workers=0, start=0, stop=42):
    folder, splits = shards
    train = splits["train"]
    share = Share(start=start, stop=stop, batch=6, rank=rank, world_size=world_size)
    order = TrainingOrder(train.shard_sizes, seed=3, window=2)
    transform = TrainTransform(DATA, seed=3)
    return list(make_loader(folder, train, share, transform, order=order, num_workers=num_workers))


def assert_equal_batches(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


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
    share = Share(start=0, stop=11, batch=4)
    transform = EvalTransform(resize=18, size=16)
    loader = make_loader(folder, splits["validation"], share, transform, num_workers=num_workers)
    assert torch.cat([batch.indices for batch in loader]).tolist() == list(range(11))


@pytest.mark.parametrize(("height", "width"), [(24, 32), (33, 24), (20, 20), (19, 61), (47, 18)])
def test_evaluation_pixels_equal_those_of_the_shipped_processor(tmp_path, height, width):
    content = jpeg_bytes(5, height, width)
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    ours = EvalTransform(resize=18, size=16)(content, 0, 0)
    processor = build_processor(DATA)
    with Image.open(path) as picture:
        theirs = processor(
            picture, do_normalize=False, do_rescale=False, return_tensors="pt"
        ).pixel_values[0]
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_a_shard_that_ends_early_is_named_with_the_sample(tmp_path):
    manifest = write_shards(tmp_path, train=[3], validation=[1])
    path = tmp_path / "tiny-train-0.tar"
    path.write_bytes(path.read_bytes()[:2000])
    share = Share(start=0, stop=3, batch=3)
    loader = make_loader(tmp_path, manifest.splits["train"], share, EvalTransform(18, 16))
    with pytest.raises(InputError, match="ends within sample sample_00001"):
        list(loader)


def test_a_damaged_picture_is_named(tmp_path):
    manifest = write_shards(tmp_path, train=[3], validation=[1])
    split = manifest.splits["train"]
    path = tmp_path / "tiny-train-0.tar"
    content = bytearray(path.read_bytes())
    content[split.offsets[1] : split.offsets[1] + 4] = b"oops"
    path.write_bytes(bytes(content))
    loader = make_loader(tmp_path, split, Share(0, 3, 3), EvalTransform(18, 16))
    with pytest.raises(ValueError, match="sample_00001 cannot be decoded"):
        list(loader)
