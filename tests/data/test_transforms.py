import io
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from imagenet_rn50.data.loader import build_loader
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.data.transforms import (
    EvalTransform,
    TrainTransform,
    augmentation_rng,
    resize,
)
from imagenet_rn50.jpeg import decode as jpeg
from imagenet_rn50.jpeg.crop import with_offset_table
from imagenet_rn50.jpeg.header import read_header
from imagenet_rn50.recipe import DataRecipe
from tests.images import pillow_jpeg, scene
from tests.support import write_shards

pytestmark = pytest.mark.numeric

PHOTOS = Path(sklearn.__file__).parent / "datasets" / "images"


@cache
def photos():
    """Real photos in several subsamplings, with restart markers and without."""
    contents = []
    for name in ("china.jpg", "flower.jpg"):
        pixels = np.asarray(Image.open(PHOTOS / name))
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            content = pillow_jpeg(pixels, subsampling=subsampling, restart_marker_blocks=4)
            contents += [with_offset_table(content), pillow_jpeg(pixels, subsampling=subsampling)]
    return contents


def differences(size: int, num_crops: int) -> dict[int, list[float]]:
    """Mean absolute difference of each crop from Pillow's of the same box, by DCT factor."""
    found: dict[int, list[float]] = {}
    transform = TrainTransform(DataRecipe(train_size=size, flip=0.0), seed=1)
    for index, content in enumerate(photos()):
        for epoch in range(num_crops):
            rng = augmentation_rng(1, epoch, index)
            header = read_header(content, strict=True)
            (top, left, height, width), factor = transform.draw_box(rng, header, size)
            image = Image.open(io.BytesIO(content)).convert("RGB")
            box = (left, top, left + width, top + height)
            theirs = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
            ours = transform(content, epoch, index).permute(1, 2, 0).numpy()
            difference = np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).mean()
            found.setdefault(factor, []).append(difference)
    return found


def test_crops_of_photos_differ_from_pillows_by_less_than_a_fifth_of_a_level():
    found = differences(size=224, num_crops=12)
    assert max(found[1]) <= 0.2  # 0.1 where torch resizes in integers, as Pillow does


def test_crops_that_are_shrunk_while_decoding_differ_by_less_than_half_a_level():
    found = differences(size=64, num_crops=12)
    assert len(found[2]) >= 20
    assert np.mean(found[2]) <= 0.5


def test_resizing_equals_torchvisions():
    pixels = scene(90, 120)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = functional.resize(image, [40, 50], antialias=True)
    assert torch.equal(resize(pixels, (40, 50)), expected)
    assert torch.equal(resize(pixels, (40, 50), flip=True), expected.flip(-1))
    out = torch.empty(40, 50, 3, dtype=torch.uint8).permute(2, 0, 1)
    assert resize(pixels[:, :], (40, 50), out=out) is out
    assert torch.equal(out, expected)


@pytest.mark.parametrize("size", [(40, 50), (97, 31), (200, 260)])
def test_resizing_is_within_one_level_of_exact_arithmetic_on_any_processor(size):
    pixels = scene(90, 120)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    exact = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)[0]
    assert (resize(pixels, size).int() - exact.round().int()).abs().max() <= 1


def test_markers_and_table_change_no_pixel_of_a_training_picture():
    pixels = scene(300, 400)
    plain = pillow_jpeg(pixels)
    marked = pillow_jpeg(pixels, restart_marker_blocks=5)
    transform = TrainTransform(DataRecipe(train_size=64), seed=2)
    for index in range(30):
        expected = transform(plain, 0, index)
        assert torch.equal(transform(marked, 0, index), expected)
        assert torch.equal(transform(with_offset_table(marked), 0, index), expected)


@pytest.mark.parametrize("transform", [TrainTransform(DataRecipe(), 0), EvalTransform(256, 224)])
def test_gray_pictures_become_three_equal_channels(transform):
    image = transform(pillow_jpeg(scene(300, 260)[:, :, 0], restart_marker_blocks=3), 0, 0)
    assert image.shape == (3, 224, 224)
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])


def test_the_factor_leaves_enough_for_resizing():
    assert jpeg.dct_factor((0, 0, 1007, 2000), (224, 224)) == 1
    assert jpeg.dct_factor((0, 0, 1008, 1008), (224, 224)) == 2
    assert jpeg.dct_factor((0, 0, 2016, 5000), (224, 224)) == 4
    assert jpeg.dct_factor((0, 0, 9000, 9000), (224, 224)) == 8


def test_crops_grow_in_steps_of_32_px_as_ffcvs_do():
    data = DataRecipe(train_size=160, final_size=192, growth=(11.0, 13.0))
    # np.round(np.interp(epoch, [11, 13], [160, 192]) / 32) * 32, from ffcv-imagenet
    sizes = [int(np.round(np.interp(e, [11, 13], [160, 192]) / 32)) * 32 for e in range(16)]
    assert [data.size_at(epoch) for epoch in range(16)] == sizes
    assert sizes[10] == 160
    assert sizes[13] == 192


def test_a_batch_across_two_epochs_has_the_size_of_its_first_sample(tmp_path):
    manifest = write_shards(tmp_path, train=[7], validation=[1])
    data = DataRecipe(train_size=32, final_size=64, growth=(0.0, 1.0), eval_size=32)
    split = manifest.splits["train"]
    order = ShardShuffleSampler(split.shard_sizes, seed=0, window=1)
    share = DistributedBatchSampler(start=0, stop=14, batch=4)
    batches = build_loader(tmp_path, split, share, TrainTransform(data, 0), order=order)
    assert [tuple(batch.images.shape) for batch in batches] == [
        (4, 3, 32, 32),
        (4, 3, 32, 32),
        (4, 3, 64, 64),
        (2, 3, 64, 64),
    ]
