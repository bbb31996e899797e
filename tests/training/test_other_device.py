"""Training on a device that is neither the CPU nor CUDA, as far as it can be judged without one."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from imagenet_rn50.training.learner import Learner
from imagenet_rn50.training.meter import Meter
from imagenet_rn50.training.session import make_accelerator

from imagenet_rn50.data.loader import Batch, on_device
from imagenet_rn50.data.reader import LocalShards
from imagenet_rn50.evaluation import metrics
from imagenet_rn50.evaluation.evaluate import validate
from imagenet_rn50.recipe import load_recipe
from imagenet_rn50.shards.manifest import VALIDATION, Manifest
from tests.operators import OtherDevice
from tests.support import CLASSES

DEVICE = torch.device("meta")
STEM = "resnet.embedder.embedder.convolution.weight"


@pytest.fixture
def no_float64():
    metrics.widest_float.cache_clear()
    with OtherDevice():
        yield
    metrics.widest_float.cache_clear()


def test_such_a_device_has_no_float64(no_float64):
    assert metrics.widest_float(DEVICE) == torch.float32
    assert metrics.widest_float(torch.device("cpu")) == torch.float64


def test_a_step_a_save_and_a_validation_ask_nothing_that_mps_lacks(tiny, no_float64, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setattr(Accelerator, "device", DEVICE)
    recipe = load_recipe(str(tiny / "tiny.yaml"))
    session = SimpleNamespace(
        recipe=recipe,
        accelerator=make_accelerator(),
        add_up=lambda tensor: tensor,
        init_from=None,
    )
    with torch.device(DEVICE):
        learner = Learner(session, CLASSES)  # type: ignore[arg-type]
        meter = Meter(DEVICE, 1)
    pictures, labels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4) % 3
    batches = [Batch(pictures, labels, labels, labels >= 0)] * recipe.accumulation(1)
    mean, std = recipe.data.mean, recipe.data.std
    learner.step(on_device(batches, DEVICE, mean, std), 0.1, meter, samples_seen=0)
    assert meter.read(lambda tensor: tensor)["num_images"] == recipe.global_batch
    assert learner.capture()["model.safetensors"][STEM].device.type == "cpu"

    split = Manifest.load(tiny / "shards").split(VALIDATION)
    counted = []
    with pytest.raises(RuntimeError, match="counted 0 images"):  # what is copied from it is zeros
        validate(
            learner.bare,
            LocalShards(tiny / "shards"),
            split,
            recipe.data,
            device=DEVICE,
            batch=8,
            on_batch=lambda batch, logits: counted.append(len(batch.labels)),
        )
    assert sum(counted) == split.num_samples
