import numpy as np
import pytest
from PIL import Image

from imagenet_rn50.data.transforms import TrainTransform
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.tools.preview import preview
from imagenet_rn50.utils.errors import InputError
from tests.support import jpeg_bytes, write_shards

RECIPE = Recipe.model_validate(
    {"data": {"train_size": 16, "eval_size": 16, "eval_resize": 18, "shuffle_window": 2}}
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, train=[7, 9], validation=[6])
    return folder


def test_the_grid_shows_the_pixels_that_training_sees(shards, tmp_path):
    out = tmp_path / "preview.png"
    batch = preview(LocalShards(shards), RECIPE, out, start=20, rows=2, columns=3)
    pixels = np.asarray(Image.open(out))
    side, margin, line = 16 * 7, 8, 18  # px: enlarged sevenfold, and a line of text below
    assert pixels.shape == (
        2 * (side + line + margin) + margin,
        3 * (side + margin) + margin,
        3,
    )
    transform = TrainTransform(RECIPE.data, RECIPE.seed)
    for number, index in enumerate(batch.indices.tolist()):
        expected = transform(jpeg_bytes(index), 1, index)  # positions from 16 on: second epoch
        top = margin + number // 3 * (side + line + margin)
        left = margin + number % 3 * (side + margin)
        shown = pixels[top : top + side, left : left + side]
        np.testing.assert_array_equal(shown[::7, ::7], expected.permute(1, 2, 0).numpy())
        np.testing.assert_array_equal(shown[6::7, 6::7], shown[::7, ::7])
        assert (pixels[top + side : top + side + line, left : left + side] < 128).any()  # a name


def test_a_grid_beyond_the_end_of_validation_is_refused(shards, tmp_path):
    assert preview(
        LocalShards(shards), RECIPE, tmp_path / "a.png", split="validation", rows=1, columns=6
    )
    with pytest.raises(InputError, match="go beyond the end of validation"):
        preview(
            LocalShards(shards), RECIPE, tmp_path / "b.png", split="validation", rows=2, columns=4
        )
