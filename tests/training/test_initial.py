"""A run that begins with the weights of others."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagenet_rn50.model import build_labelled, to_torchvision
from imagenet_rn50.recipe import load_recipe
from imagenet_rn50.runs.checkpoint import folder_name, newest_checkpoint
from imagenet_rn50.runs.metrics import START, MetricsLogger, read_metrics
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.training.accelerator import make_accelerator
from imagenet_rn50.training.checkpointer import AsyncCheckpointer
from imagenet_rn50.training.config import CheckpointConfig
from imagenet_rn50.training.init_weights import init_from_pretrained
from imagenet_rn50.training.trainer import Trainer
from imagenet_rn50.utils.files import sha256_of_file
from tests.support import write_recipe, write_shards

pytestmark = pytest.mark.numeric

ROOT = Path(__file__).parents[2]
STEM = "resnet.embedder.embedder.convolution.weight"


@pytest.fixture
def tiny(tmp_path):
    write_shards(tmp_path / "shards", train=[8, 6, 7], validation=[6])
    write_recipe(tmp_path)
    return tmp_path


def save_weights(path, num_classes):
    """A network of the tiny recipe under torchvision's names."""
    torch.manual_seed(7)
    recipe = load_recipe(str(path.parent / "tiny.yaml"))
    model = build_labelled(recipe.model, [f"thing {index}" for index in range(num_classes)])
    save_file(to_torchvision(model.state_dict()), path)
    return model.state_dict()


@pytest.mark.multiprocess
def test_training_goes_on_from_there_with_a_new_classifier_and_the_journal_says_so(tiny, trainers):
    theirs = save_weights(tiny / "weights.safetensors", num_classes=5)
    still = ["--optimizer.lr", "1e-12", "--optimizer.weight-decay", "0", "--epochs", "1"]
    weights = str(tiny / "weights.safetensors")
    said = trainers.train(tiny, tiny / "run", "--init-from", weights, *still)
    assert "a new classifier: theirs has 5 classes, this run has 3" in said
    checkpoint = newest_checkpoint(tiny / "run" / "checkpoints")
    assert checkpoint is not None
    ours = load_file(checkpoint.weights)
    torch.testing.assert_close(ours[STEM], theirs[STEM], rtol=0, atol=1e-8)
    assert len(ours["classifier.1.weight"]) == 3
    [start] = read_metrics(tiny / "run", START)
    sha256 = sha256_of_file(tiny / "weights.safetensors")
    named = {"name": "weights.safetensors", "sha256": sha256, "weights": "raw", "classifier": "new"}
    assert start["init_from"] == named  # and no folder of this machine


def test_the_same_classes_keep_their_classifier_and_other_names_are_said(tiny):
    theirs = save_weights(tiny / "model.safetensors", num_classes=3)
    (tiny / "config.json").write_text('{"id2label": {"0": "first", "1": "wolf", "2": "third"}}')
    told: list[str] = []
    accelerator: Any = SimpleNamespace(print=told.append)
    recipe = load_recipe(str(tiny / "tiny.yaml"))
    model = build_labelled(recipe.model, ["first", "second", "third"])
    line = init_from_pretrained(model, str(tiny), recipe, accelerator)
    assert line["init_from"]["classifier"] == "kept"
    assert torch.equal(model.state_dict()["classifier.1.bias"], theirs["classifier.1.bias"])
    assert "1 of 3 classes have another name there ('wolf' for 'second')" in told[0]


def test_a_checkpoint_taken_up_comes_before_other_weights_and_the_lr_finder_takes_up_none(
    tiny, monkeypatch, capsys
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    theirs = save_weights(tiny / "weights.safetensors", num_classes=3)
    recipe, shards = load_recipe(str(tiny / "tiny.yaml")), LocalShards(tiny / "shards")
    weights = str(tiny / "weights.safetensors")

    def build(run, **options):
        return Trainer(recipe, shards, run, make_accelerator(), **options)

    def stem(trainer):
        return trainer.state.model.state_dict()[STEM]

    fresh = build(tiny / "other", init_from=weights)
    assert torch.equal(stem(fresh), theirs[STEM])
    assert fresh.init_info["init_from"]["name"] == "weights.safetensors"
    trained = build(tiny / "other")
    trained.state.progress = trained.state.progress.after_step()
    with closing(MetricsLogger(tiny / "other", 0)) as logger:
        with closing(AsyncCheckpointer(trained.run, trained.config, logger)) as checkpointer:
            trained.checkpointer, trained.logger = checkpointer, logger
            trained.save()
    assert not torch.equal(stem(trained), theirs[STEM])
    assert "--init-from" not in capsys.readouterr().out

    checkpoint = tiny / "other" / "checkpoints" / folder_name(trained.state.progress.samples_seen)
    resume = CheckpointConfig(resume=str(checkpoint))
    forked = build(tiny / "new", init_from=weights, config=resume)
    assert forked.init_info == {}
    assert torch.equal(stem(forked), stem(trained))
    assert f"{checkpoint}: --init-from is not used" in capsys.readouterr().out
    finder = build(tiny / "other", init_from=weights, create=False)  # as --find-lr does
    assert torch.equal(stem(finder), theirs[STEM])
    assert "weights.safetensors" in capsys.readouterr().out
