"""Bad images stop a packing, or are skipped."""

import pytest

from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import contents, jpeg, write_imagefolder


@pytest.fixture
def flawed(tmp_path):
    """Return a source with a truncated image and a text file named .JPEG."""
    root = write_imagefolder(tmp_path / "source")
    truncated = jpeg(7, size=(100, 80))
    (root / "train" / "n01440764" / "cut.JPEG").write_bytes(truncated[: len(truncated) // 2])
    (root / "val" / "n01440764" / "text.JPEG").write_bytes(b"not found")
    return read_source(root)


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_images_stop_the_run_by_default_and_are_named(flawed, tmp_path, workers):
    with pytest.raises(InputError, match=r"(cut|text)\.JPEG .* cannot be used"):
        pack(flawed, tmp_path / "out", PackOptions(train_shards=2), num_workers=workers)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out").glob("*.partial"))


def test_after_stopping_at_a_bad_image_leaving_out_goes_on_from_there(flawed, tmp_path):
    skip = PackOptions(train_shards=4, on_corrupt="skip")
    pack(flawed, tmp_path / "at_once", skip)
    with pytest.raises(InputError):
        pack(flawed, tmp_path / "out", PackOptions(train_shards=4))
    packed = pack(flawed, tmp_path / "out", skip)
    assert packed.num_kept > 0
    assert packed.manifest.split("train").num_samples == 12
    assert packed.manifest.split("validation").num_samples == 6
    assert contents(tmp_path / "out") == contents(tmp_path / "at_once")
