"""Training on a device that is neither the CPU nor CUDA, as far as it can be judged without one."""

import pytest
import torch
from accelerate import Accelerator

from imagenet_rn50.data.dataset import Batch
from imagenet_rn50.data.loader import on_device
from imagenet_rn50.evaluation import metrics
from imagenet_rn50.evaluation.evaluate import validate_batches, validation_loader
from imagenet_rn50.recipe import load_recipe
from imagenet_rn50.shards.manifest import VALIDATION, Manifest
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.training.accelerator import make_accelerator
from imagenet_rn50.training.state import copy_to_cpu
from imagenet_rn50.training.trainer import Trainer
from tests.operators import OtherDevice

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


def test_a_step_a_save_and_a_validation_ask_nothing_that_mps_lacks(
    tiny, no_float64, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setattr(Accelerator, "device", DEVICE)
    recipe = load_recipe(str(tiny / "tiny.yaml"))
    shards, accelerator = LocalShards(tiny / "shards"), make_accelerator()
    with torch.device(DEVICE):
        trainer = Trainer(recipe, shards, tmp_path / "run", accelerator, create=False)
    pictures, labels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4) % 3
    batches = [Batch(pictures, labels, labels)] * recipe.accumulation(1)
    mean, std = recipe.data.mean, recipe.data.std
    trainer.train_step(on_device(batches, DEVICE, mean, std), 0.1, position=0)
    line = trainer.meter.compute_and_reset(trainer.all_reduce_sum)
    assert line["num_images"] == recipe.global_batch
    copied = copy_to_cpu(trainer.state.state_dict())
    assert copied["model.safetensors"][STEM].device.type == "cpu"

    split = Manifest.load(tiny / "shards").split(VALIDATION)
    loader = validation_loader(shards, split, recipe.data, device=DEVICE, batch=8)
    counted = []
    with pytest.raises(RuntimeError, match="counted 0 images"):  # what is copied from it is zeros
        validate_batches(
            trainer.state.model,
            loader,
            recipe.data,
            split.num_samples,
            device=DEVICE,
            on_batch=lambda batch, logits: counted.append(len(batch.labels)),
        )
    assert sum(counted) == split.num_samples
