"""Precision and compilation, really run: bf16, fp16 with its GradScaler, torch.compile."""

import copy
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import TorchDynamoPlugin
from safetensors.torch import load_file
from torch import nn

from imagenet_rn50.data.loader import DeviceBatch
from imagenet_rn50.model import build_model, logits_of
from imagenet_rn50.publishing.export import export
from imagenet_rn50.recipe import ModelRecipe, OptimizerRecipe, Recipe
from imagenet_rn50.runs.checkpoint import newest_checkpoint
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.runs.run_dir import RunDir
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.training.accelerator import make_accelerator
from imagenet_rn50.training.config import CheckpointConfig
from imagenet_rn50.training.trainer import Trainer
from tests.support import CLASSES, write_recipe, write_shards

NUM_CLASSES = len(CLASSES)
TINY = ModelRecipe(embedding_size=8, hidden_sizes=(8, 8), depths=(1, 1), layer_type="basic")


@pytest.fixture(scope="module")
def launched(tmp_path_factory, trainers):
    """A run in bf16, compiled, that keeps averages; in the environment that the launcher sets."""
    folder = tmp_path_factory.mktemp("bf16")
    write_shards(folder / "shards", train=[8, 6, 7], validation=[6, 5])
    write_recipe(folder)
    options = ["--workers", "0", "--trackers", "tensorboard"]
    options += ["--epochs", "12", "--ema-decay", "0.5", "--label-smoothing", "0.0"]
    options += ["--optimizer.lr", "0.1", "--data.flip", "0.0", "--data.crop-scale", "0.9", "1.0"]
    asked = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "EAGER"}
    trainers.train(folder, folder / "run", *options, **asked)
    return folder


@pytest.mark.multiprocess
def test_bf16_and_compile_are_what_the_launcher_asked_for_and_learn(launched):
    (start,) = read_metrics(launched / "run", "start")
    assert (start["mixed_precision"], start["compile"]) == ("bf16", "eager")
    train = read_metrics(launched / "run", "train")
    assert train[-1]["loss"] < 0.9 * train[0]["loss"]
    validation = read_metrics(launched / "run", "validation")
    assert all(line["loss"] != line["ema_loss"] for line in validation)


@pytest.mark.multiprocess
def test_a_compiled_runs_checkpoint_is_a_plain_one(launched, tmp_path):
    found = newest_checkpoint(launched / "run" / "checkpoints")
    assert found is not None
    plain = build_model(RunDir(launched / "run").recipe().model, CLASSES).state_dict()
    for name in ("model.safetensors", "ema.safetensors"):
        state = load_file(found.folder / name)
        assert state.keys() == plain.keys()
        assert {tensor.dtype for tensor in state.values()} <= {torch.float32, torch.int64}
    export(launched / "run", tmp_path / "exported")


@pytest.mark.multiprocess
@pytest.mark.parametrize("backend", ["no", "eager"])
def test_a_compiled_run_goes_on_compiled_or_not(launched, backend, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    shutil.copytree(launched / "run", tmp_path / "run")
    accelerator = make_accelerator()
    monkeypatch.setattr(accelerator.state, "dynamo_plugin", TorchDynamoPlugin(backend=backend))
    recipe, shards = RunDir(tmp_path / "run").recipe(), LocalShards(launched / "shards")
    config = CheckpointConfig(allow_change=("mixed_precision",))
    run = tmp_path / "run"
    trainer = Trainer(recipe, shards, run, accelerator, config=config)
    found = newest_checkpoint(run / "checkpoints")
    assert found is not None
    assert trainer.state.progress.samples_seen == found.samples_seen
    assert isinstance(trainer.model, torch._dynamo.OptimizedModule) == (backend == "eager")
    assert trainer.state.ema is not None
    for model, name in ((trainer.state.model, "model"), (trainer.state.ema.model, "ema")):
        for key, tensor in load_file(found.folder / f"{name}.safetensors").items():
            assert torch.equal(model.state_dict()[key], tensor)


@pytest.fixture
def build(tiny, tmp_path):
    """Builds a trainer for steps alone: no run directory is created."""

    def build(recipe, accelerator):
        shards = LocalShards(tiny / "shards")
        return Trainer(recipe, shards, tmp_path / "run", accelerator, create=False)

    return build


def read(trainer):
    return trainer.meter.compute_and_reset(trainer.all_reduce_sum)


def endless_batches(size=4):
    """The same batch again and again."""
    torch.manual_seed(1)
    pictures = torch.randn(size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, NUM_CLASSES, (size,))
    while True:
        yield DeviceBatch(pictures, labels, SimpleNamespace(indices=torch.arange(size)))  # type: ignore[arg-type]


@pytest.fixture
def fp16(monkeypatch):
    """An Accelerator in fp16 with a GradScaler; on a CPU it would quietly stay in fp32."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    accelerator = make_accelerator()
    monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    return accelerator


@pytest.mark.multiprocess
def test_load_state_continues_a_bf16_checkpoint_in_fp16(launched, fp16):
    recipe, shards = RunDir(launched / "run").recipe(), LocalShards(launched / "shards")
    trainer = Trainer(recipe, shards, launched / "run", fp16, create=False)
    found = newest_checkpoint(launched / "run" / "checkpoints")
    assert found is not None
    fp16.load_state(str(found.folder))
    state = trainer.state
    assert state.progress.samples_seen == found.samples_seen
    assert state.ema is not None
    for model, name in ((state.model, "model"), (state.ema.model, "ema")):
        for key, tensor in load_file(found.folder / f"{name}.safetensors").items():
            assert torch.equal(model.state_dict()[key], tensor)
    assert state.scaler is not None
    assert state.scaler.get_scale() > 1  # the bf16 run saved a scaler that has not started
    size = recipe.micro_batch
    trainer.train_step(endless_batches(size), 0.01, position=0)
    assert read(trainer)["loss"] > 0


def tiny_recipe(**optimizer):
    return Recipe(
        global_batch=8,
        micro_batch=4,
        ema_decay=0.5,
        model=TINY,
        optimizer=OptimizerRecipe(weight_decay=0.0, **optimizer),
    )


def test_fp16_computes_in_fp16_and_learns(fp16, build):
    trainer = build(tiny_recipe(), fp16)
    kinds = set()
    convolution = next(m for m in trainer.state.model.modules() if isinstance(m, nn.Conv2d))
    convolution.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
    losses, batches = [], endless_batches()
    for _ in range(15):
        trainer.train_step(batches, 0.05, position=0)
        line = read(trainer)
        losses.append(line["loss"])
        assert "skipped_steps" not in line
    assert kinds == {torch.float16}
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.dtype == torch.float32 for p in trainer.state.model.parameters())


def test_an_overflow_changes_nothing_is_counted_and_the_next_steps_are_taken(fp16, build):
    fp16.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    trainer = build(tiny_recipe(), fp16)
    batches = endless_batches()
    weights = copy.deepcopy(dict(trainer.state.model.named_parameters()))
    trainer.train_step(batches, 0.05, position=0)
    line = read(trainer)
    assert line["skipped_steps"] == 1
    assert 1.0 < line["loss"] < 3.0  # the loss itself, not scaled
    assert fp16.scaler.get_scale() == 2.0**39
    assert trainer.state.optimizer.state_dict()["state"] == {}
    assert trainer.state.ema._num_updates == 0
    for name, parameter in trainer.state.model.named_parameters():
        assert torch.equal(parameter, weights[name])
    for _ in range(40):
        trainer.train_step(batches, 0.05, position=0)
        if trainer.state.ema._num_updates == 2:
            break
    assert read(trainer)["skipped_steps"] > 1
    for name, tensor in trainer.state.model.state_dict().items():
        assert tensor.isfinite().all()
        assert name not in weights or not torch.equal(tensor, weights[name])


def test_gradients_are_clipped_after_they_were_unscaled(fp16, build):
    recipe = tiny_recipe(clip_norm=0.01, momentum=0.0)
    trainer = build(recipe, fp16)
    before = torch.cat([p.detach().flatten() for p in trainer.state.model.parameters()])
    trainer.train_step(endless_batches(), 0.5, position=0)
    after = torch.cat([p.detach().flatten() for p in trainer.state.model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.5 * 0.01, rel=1e-2)


def test_averaged_weights_are_evaluated_in_mixed_precision_as_themselves(fp16, build):
    """Accelerate replaces the model's forward; the average's copy must not call the original's."""
    trainer = build(tiny_recipe(), fp16)
    last = trainer.state.ema.model.get_submodule("classifier.1")
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 3.0)
    pictures = next(endless_batches()).images
    logits = logits_of(trainer.state.ema.model, pictures)
    assert torch.equal(logits, torch.full((4, NUM_CLASSES), 3.0))
    assert logits.dtype == torch.float32


@pytest.mark.slow
def test_inductor_takes_the_steps_of_eager(monkeypatch, build):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    weights = []
    for backend in ("no", "inductor"):
        accelerator = make_accelerator()
        monkeypatch.setattr(accelerator.state, "dynamo_plugin", TorchDynamoPlugin(backend=backend))
        trainer, batches = build(tiny_recipe(), accelerator), endless_batches()
        for _ in range(3):
            trainer.train_step(batches, 0.05, position=0)
        weights.append(trainer.state.model.state_dict())
    eager, compiled = weights
    assert eager.keys() == compiled.keys()
    for name, tensor in eager.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-3, atol=1e-5)
