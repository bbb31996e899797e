"""The loader on its own, as docs/loading.md shows it."""

import re
import subprocess
import sys
from typing import Any

import pytest
import torch

import imagenet_rn50.data
from imagenet_rn50.data import EvalTransform, make_loader
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.utils.errors import InputError
from tests.commands import ROOT
from tests.data.servers import serve
from tests.support import write_shards

pytestmark = pytest.mark.numeric

DATA = DataRecipe(train_size=16, eval_size=16, eval_resize=18, shuffle_window=2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, train=[7, 0, 9, 5], validation=[5, 6])
    return folder


def joined(loader):
    batches = list(loader)
    return torch.cat([b.images for b in batches]), torch.cat([b.indices for b in batches])


def test_the_public_names_are_these():
    assert sorted(imagenet_rn50.data.__all__) == [
        "Batch",
        "EvalTransform",
        "Loader",
        "LoaderStats",
        "TrainTransform",
        "Transform",
        "make_loader",
        "normalise",
        "on_device",
    ]
    for name in imagenet_rn50.data.__all__:
        assert getattr(imagenet_rn50.data, name).__name__ == name
    with pytest.raises(AttributeError, match="made_loader"):
        imagenet_rn50.data.made_loader  # noqa: B018


def test_the_sampler_is_imported_without_torch():
    program = "import sys, imagenet_rn50.data.sampler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_one_call_reads_every_epoch_once_and_resumes_at_any_position(shards):
    images, indices = joined(make_loader(shards, batch_size=4, data=DATA, epochs=2, seed=3))
    for epoch in range(2):
        assert sorted(indices[21 * epoch : 21 * (epoch + 1)].tolist()) == list(range(21))
    resumed = make_loader(str(shards), batch_size=4, data=DATA, epochs=2, seed=3, position=12)
    for ours, expected in zip(joined(resumed), (images, indices), strict=True):
        assert torch.equal(ours, expected[12:])
    other = make_loader(shards, batch_size=4, data=DATA, epochs=2, seed=4)
    assert not torch.equal(joined(other)[1], indices)


def test_ranks_share_the_batches_of_one_rank(shards):
    alone = list(make_loader(shards, batch_size=4, data=DATA))
    ranks = [
        list(make_loader(shards, batch_size=4, data=DATA, rank=rank, world_size=2))
        for rank in range(2)
    ]
    for number, batch in enumerate(alone):
        assert torch.equal(ranks[number % 2][number // 2].images, batch.images)


def test_other_splits_are_read_in_order_and_by_a_transform_of_ones_own(shards):
    images, indices = joined(make_loader(shards, "validation", batch_size=4, data=DATA))
    assert indices.tolist() == list(range(11))
    transform = EvalTransform(resize=20, size=8)
    smaller, _ = joined(make_loader(shards, "validation", batch_size=4, transform=transform))
    assert (images.shape, smaller.shape) == ((11, 3, 16, 16), (11, 3, 8, 8))
    with pytest.raises(ValueError, match="epochs"):
        make_loader(shards, "validation", batch_size=4, epochs=2)
    with pytest.raises(InputError, match="test"):
        make_loader(shards, "test", batch_size=4)


def test_the_shards_may_be_remote(shards, tmp_path):
    with serve(shards) as server:
        remote = make_loader(server.address, batch_size=4, data=DATA, cache=tmp_path)
        local = make_loader(shards, batch_size=4, data=DATA)
        for ours, expected in zip(joined(remote), joined(local), strict=True):
            assert torch.equal(ours, expected)


def test_the_example_in_the_documentation_runs(shards, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "loading.md").read_text("utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.S)
    assert example is not None
    (tmp_path / "data" / "digits").mkdir(parents=True)
    (tmp_path / "data" / "digits" / "shards").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example[1], names)
    assert names["batch"].images.dtype == torch.uint8
