"""A short run with everything that a checkpoint must hold, trained in this process."""

import pytest

from imagenet_rn50.recipe import load_recipe
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.training.accelerator import make_accelerator
from imagenet_rn50.training.config import CheckpointConfig
from imagenet_rn50.training.trainer import Trainer
from imagenet_rn50.utils.errors import InputError
from tests.training.trainers import hashes, measured

# Everything that a checkpoint must hold: averages, mixing, growing crops, a plateau that cuts.
RECIPE = """\
epochs: 3
global_batch: 8
micro_batch: 4
ema_decay: 0.9
mixup_alpha: 0.2
cutmix_alpha: 1.0
model: {embedding_size: 8, hidden_sizes: [8, 8], depths: [1, 1], layer_type: basic}
data: {train_size: 32, final_size: 64, growth: [0, 2], eval_size: 32, eval_resize: 36,
       shuffle_window: 2}
optimizer: {lr: 0.05}
schedule: {name: constant, warmup_epochs: 0.5, plateau_patience: 1, plateau_threshold: 0.9}
"""
NUM_STEPS, ACCUMULATION = 8, 2  # 3 epochs of 21 pictures
EPOCH_ENDS = [24, 48, 64]


def recipe_of(tiny):
    return load_recipe(str(tiny / "tiny.yaml"))


def build(tiny, run, recipe=None, shards=None, create=True, **config):
    """Builds a trainer in this process."""
    return Trainer(
        recipe or recipe_of(tiny),
        LocalShards(shards or tiny / "shards"),
        run,
        make_accelerator(),
        config=CheckpointConfig(**config),
        create=create,
    )


def train(tiny, run, **options):
    """Runs one process's part of a run; returns its exit code."""
    try:
        build(tiny, run, **options).train()
    except SystemExit as ended:
        return ended.code
    return 0


def assert_same_run(run, other):
    assert hashes(run) == hashes(other)
    assert measured(run) == measured(other)
    assert [line["samples_seen"] for line in read_metrics(run, "validation")] == EPOCH_ENDS


def refusal(tiny, run, **options):
    """Returns the message of a refused start, which changes nothing."""
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(InputError) as refused:
        train(tiny, run, **options)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    return str(refused.value)


def other_recipe(tiny, **optimizer):
    recipe = recipe_of(tiny)
    changed = recipe.optimizer.model_copy(update=optimizer)
    return recipe.model_copy(update={"optimizer": changed})
