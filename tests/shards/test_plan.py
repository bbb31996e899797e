from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_rn50.classes import Classes
from imagenet_rn50.shards.plan import PackOptions, make_plan, num_shards_of, permutation, shard_name
from imagenet_rn50.shards.sources.base import Source, SourceImage
from imagenet_rn50.utils.errors import InputError


def source_of(train: int, validation: int) -> Source:
    splits = {
        name: [SourceImage(f"{name}{i}", 0, f"{i}.jpg", 0, 1) for i in range(count)]
        for name, count in (("train", train), ("validation", validation))
        if count
    }
    return Source(Path("source"), "imagefolder", Classes(("n01440764",), ("tench",)), splits)


def test_the_order_of_a_seed_stays_the_same_for_ever():
    # Written down once: shards that were packed years ago can be made again.
    assert permutation(8, seed=0, stream=0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert permutation(8, seed=0, stream=1).tolist() != [3, 2, 1, 6, 0, 7, 4, 5]


@given(
    train=st.integers(1, 60),
    validation=st.integers(0, 20),
    shards=st.integers(1, 9),
    seed=st.integers(0, 2**63),
)
def test_every_image_goes_into_exactly_one_shard(train, validation, shards, seed):
    source = source_of(train, validation)
    plan = make_plan(source, PackOptions(seed=seed, train_shards=min(shards, train)))
    for split, images in source.splits.items():
        tasks = [task for task in plan.tasks if task.split == split]
        packed = [image for task in tasks for image in task.images]
        assert sorted(packed) == sorted(images)
        sizes = [len(task.images) for task in tasks]
        assert max(sizes) - min(sizes) <= 1
        assert [task.name for task in tasks] == sorted({task.name for task in tasks})


def test_imagenet_gets_1024_and_64_shards_with_the_names_that_others_expect():
    assert num_shards_of("train", 1_281_167) == 1024
    assert num_shards_of("validation", 50_000) == 64
    assert shard_name("imagenet1k", "train", 0, 1024) == "imagenet1k-train-0000.tar"
    assert shard_name("imagenet1k", "train", 1023, 1024) == "imagenet1k-train-1023.tar"
    assert shard_name("imagenet1k", "validation", 0, 64) == "imagenet1k-validation-00.tar"
    assert shard_name("imagenet1k", "validation", 63, 64) == "imagenet1k-validation-63.tar"


def test_more_shards_than_images_are_refused():
    with pytest.raises(InputError, match="5 train shards cannot be made of 4 images"):
        make_plan(source_of(4, 0), PackOptions(train_shards=5))


def test_validation_is_permuted_alike_with_and_without_training():
    options = PackOptions()
    alone = make_plan(source_of(0, 30), options).tasks[-1].images
    both = make_plan(source_of(30, 30), options).tasks[-1].images
    assert alone == both
    assert [p.key for p in both] != [f"validation{i}" for i in range(30)]


def test_shards_of_a_small_data_set_have_two_digits():
    assert shard_name("x", "train", 3, 9) == "x-train-03.tar"


@given(size=st.integers(0, 300), seed=st.integers(0, 2**40))
def test_a_permutation_holds_every_number_once(size, seed):
    np.testing.assert_array_equal(np.sort(permutation(size, seed=seed, stream=0)), np.arange(size))
