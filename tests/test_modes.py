"""Files that we write have the mode of any new file: readable for whom the umask lets read."""

import os
import stat

import pytest
import torch

from imagenet_rn50.model import build_labelled, save_tensors, to_torchvision
from imagenet_rn50.publishing.export import convert
from imagenet_rn50.recipe import ModelRecipe
from imagenet_rn50.training.state import write_state

TINY = ModelRecipe(embedding_size=8, hidden_sizes=(8, 16), depths=(1, 2), layer_type="bottleneck")


@pytest.fixture(params=[0o022, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes_in(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return {stat.S_IMODE(path.stat().st_mode) for path in files}


def test_an_export_is_readable_as_any_new_file_is(umask, tmp_path):
    state = build_labelled(TINY, list("abcde")).state_dict()
    torch.save(to_torchvision(state), tmp_path / "weights.pth")
    classes = tmp_path / "mapping.txt"
    classes.write_text("".join(f"n0000000{i} kind {i}\n" for i in range(5)))
    sizes = {"eval_size": 16, "eval_resize": 18}
    convert(str(tmp_path / "weights.pth"), tmp_path / "out", classes=classes, sizes=sizes)
    assert modes_in(tmp_path / "out") == {0o666 & ~umask}


def test_a_checkpoint_is_readable_as_any_new_file_is(umask, tmp_path):
    weights = {"weight": torch.ones(2)}
    state = {"model.safetensors": weights, "ema.safetensors": (weights, {"num_updates": "1"})}
    write_state(tmp_path, state | {"optimizer.bin": {}})
    assert modes_in(tmp_path) == {0o666 & ~umask}


def test_a_file_that_is_written_again_follows_the_umask_of_now(umask, tmp_path):
    for _ in range(2):
        save_tensors(tmp_path / "weights.safetensors", {"weight": torch.ones(2)})
    assert modes_in(tmp_path) == {0o666 & ~umask}
