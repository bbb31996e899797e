"""Files with raw and averaged weights: whoever reads them chooses, and none is taken in silence."""

import argparse
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from imagenet_rn50.model import build_labelled, to_torchvision
from imagenet_rn50.pretrained import Kind, read_pretrained
from imagenet_rn50.recipe import DataRecipe, ModelRecipe, Recipe
from imagenet_rn50.training.init_weights import init_from_pretrained
from imagenet_rn50.utils.errors import InputError

TINY = ModelRecipe(embedding_size=8, hidden_sizes=(8, 16), depths=(1, 1), layer_type="basic")
NAMES = ["ant", "bee", "cat"]


def state(value, names=to_torchvision):
    """Weights of the tiny network, the classifier's bias set to a value that marks them."""
    tensors = dict(names(build_labelled(TINY, NAMES).state_dict()))
    bias = "fc.bias" if "fc.bias" in tensors else "classifier.1.bias"
    return tensors | {bias: torch.full((3,), float(value))}


def under(prefix, tensors):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


RAW, EMA = 1, 2
AVERAGES = {"n_averaged": torch.tensor(7)}
LAYOUTS = {
    "timm": lambda: {
        "epoch": 3,
        "arch": "resnet",
        "args": argparse.Namespace(lr=0.1),
        "state_dict": state(RAW),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []},
        "state_dict_ema": state(EMA),
        "metric": 71.2,
    },
    "torchvision": lambda: {
        "model": state(RAW),
        "model_ema": AVERAGES | under("module.", state(EMA)),
        "args": argparse.Namespace(model="mine"),
    },
    "DDP and compile": lambda: {
        "model": under("module._orig_mod.", state(RAW)),
        "ema": under("module.", state(EMA)),
    },
    "Lightning": lambda: {
        "state_dict": under("model.", state(RAW)) | under("ema_model.", state(EMA))
    },
    "flat": lambda: state(RAW) | under("ema.", state(EMA)),
    "transformers": lambda: {
        "model": state(RAW, dict),
        "model_ema": under("module.", state(EMA, dict)),
    },
}


@pytest.fixture(params=LAYOUTS)
def both(request, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(LAYOUTS[request.param](), path)
    return str(path)


def test_each_set_can_be_chosen_and_none_is_taken_in_silence(both):
    kinds: tuple[tuple[Kind, int], ...] = (("raw", RAW), ("ema", EMA))
    for kind, value in kinds:
        found = read_pretrained(both, kind)
        assert found.state["fc.bias"].tolist() == [value] * 3
        assert found.kind == kind
        assert found.entry in str(found)
        found.rebuild()
    with pytest.raises(InputError) as refused:
        read_pretrained(both, option="--init-weights")
    assert all(w in str(refused.value) for w in ("raw", "ema", "2 sets", "--init-weights"))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"state_dict": state(RAW)}, "raw"),
        ({"state_dict_ema": state(EMA)}, "ema"),
        (AVERAGES | under("module.", state(EMA)), "ema"),
        (AVERAGES | state(EMA), "ema"),
        (under("module.", state(RAW)), "raw"),
    ],
    ids=["raw", "state_dict_ema", "AveragedModel", "AveragedModel, stripped", "DDP"],
)
def test_of_one_set_no_choice_is_needed_and_the_other_is_not_there(content, kind, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    assert read_pretrained(str(path)).kind == kind
    assert read_pretrained(str(path), kind).kind == kind
    other: Kind = "ema" if kind == "raw" else "raw"
    with pytest.raises(InputError, match=f"no {other} weights"):
        read_pretrained(str(path), other)


def test_two_sets_of_one_kind_are_named(tmp_path):
    torch.save({"teacher": state(1), "student": state(2)}, tmp_path / "weights.pth")
    choices: tuple[Kind | None, ...] = (None, "raw")
    for weights in choices:
        with pytest.raises(InputError, match=r"2 sets(.|\n)*teacher \(raw\), student \(raw\)"):
            read_pretrained(str(tmp_path / "weights.pth"), weights)


def test_a_checkpoint_of_ours_holds_both_in_files_of_their_own(tmp_path):
    save_file(state(RAW), tmp_path / "model.safetensors")
    save_file(state(EMA), tmp_path / "ema.safetensors")
    assert read_pretrained(str(tmp_path), "raw").state["fc.bias"][0] == RAW
    assert read_pretrained(str(tmp_path), "ema").state["fc.bias"][0] == EMA
    assert read_pretrained(str(tmp_path / "ema.safetensors")).kind == "ema"
    with pytest.raises(InputError, match=r"ema\.safetensors \(ema\)"):
        read_pretrained(str(tmp_path))


def begin(path, names=NAMES, weights=None, **data):
    told: list[str] = []
    accelerator: Any = SimpleNamespace(print=told.append)
    model = build_labelled(TINY, names)
    recipe = Recipe(data=DataRecipe(**data))
    line = init_from_pretrained(model, str(path), recipe, accelerator, weights)
    return model, line["init_from"], "\n".join(told)


def test_a_run_that_begins_with_averaged_weights_says_and_records_so(tmp_path):
    torch.save(LAYOUTS["timm"](), tmp_path / "last.pth.tar")
    model, line, told = begin(tmp_path / "last.pth.tar", weights="ema")
    assert model.state_dict()["classifier.1.bias"].tolist() == [EMA] * 3
    assert line["weights"] == "ema"
    assert "averaged (EMA) weights (its entry state_dict_ema)" in told
    assert "do not state their architecture: assuming" in told


@pytest.fixture
def folder(tmp_path):
    """Writes a folder as transformers does; its classifier's biases are 0, 1, 2."""

    def write(names=NAMES, processor=None, **fields):
        model = build_labelled(TINY, names, fields)
        model.state_dict()["classifier.1.bias"].copy_(torch.arange(3.0))
        model.save_pretrained(tmp_path / "theirs")
        if processor:
            processor.save_pretrained(tmp_path / "theirs")
        return tmp_path / "theirs"

    return write


@pytest.mark.parametrize(
    "fields",
    [{"hidden_act": "silu"}, {"downsample_in_bottleneck": True}],
    ids=str,
)
def test_a_run_does_not_begin_with_another_architecture(folder, fields):
    [(field, value)] = fields.items()
    with pytest.raises(InputError, match=rf"{field} (.|\n)*{field} {value!r}"):
        begin(folder(**fields))


def test_a_run_does_not_begin_with_weights_for_other_normalisation(folder):
    from imagenet_rn50.model import processor_of

    path = folder(processor=processor_of(256, 224, [0.5] * 3, [0.5] * 3, 3))
    with pytest.raises(InputError, match=r"mean 0\.485(.|\n)*--data\.mean 0\.5 0\.5 0\.5"):
        begin(path)
    _, _, told = begin(path, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert "'resample': 3" in told


def test_a_classifier_follows_the_names_of_its_classes(folder):
    path = folder(["bee, Apis", "cat", "ant"])
    model, _, told = begin(path)
    assert model.state_dict()["classifier.1.bias"].tolist() == [2.0, 0.0, 1.0]
    assert "3 of 3 matched" in told
    fresh = build_labelled(TINY, NAMES)
    model, _, told = begin(path, names=["cat", "dog", "ant"])
    assert model.state_dict()["classifier.1.bias"][[0, 2]].tolist() == [1.0, 2.0]
    assert model.state_dict()["classifier.1.bias"][1] != 0.0
    assert fresh.state_dict()["classifier.1.bias"].abs().max() < 1
    assert "2 of 3 matched" in told
    model, _, told = begin(folder(NAMES))
    assert model.state_dict()["classifier.1.bias"].tolist() == [0.0, 1.0, 2.0]
    assert "including the classifier\n" in told
