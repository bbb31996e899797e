"""Runs with checkpoints of random weights, as training leaves them behind."""

import json

import torch
from safetensors.torch import save_file

from imagenet_rn50.classes import Classes
from imagenet_rn50.model import build_model, weights_digest
from imagenet_rn50.recipe import load_recipe
from imagenet_rn50.runs.checkpoint import EMA_WEIGHTS, commit, folder_name
from imagenet_rn50.runs.metrics import START, TRAIN, VALIDATION, MetricsLogger
from imagenet_rn50.runs.run_dir import RunDir
from tests.support import CLASSES, imagenet1k_wnids, write_recipe

RESNET50_RECIPE = "data: {eval_size: 64, eval_resize: 72}\n"


def random_model(recipe, classes, seed):
    """A model whose norms are not those of a fresh one, so that each tensor matters."""
    torch.manual_seed(seed)
    model = build_model(recipe, classes)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(0.5 + torch.rand(tensor.shape))
    return model.eval()


def save_checkpoint(run, samples_seen, top1, *, ema_top1=None, is_best=False):
    """Does what training does at the end of an epoch."""
    classes = run.classes()
    model = random_model(run.recipe().model, classes, samples_seen)
    temporary = run.checkpoints / "new.partial"
    temporary.mkdir(parents=True)
    save_file(model.state_dict(), temporary / "model.safetensors")
    values = {"top1": top1, "top5": 1.0, "loss": 1.5, "num_images": 11, "seconds": 2.0}
    if ema_top1 is not None:
        averaged = random_model(run.recipe().model, classes, samples_seen + 1)
        save_file(averaged.state_dict(), temporary / EMA_WEIGHTS)
        values |= {"ema_top1": ema_top1, "ema_top5": 1.0, "ema_num_images": 11}
    final = run.checkpoints / folder_name(samples_seen)
    commit(temporary, final, samples_seen, is_best=is_best, metadata={})
    journal = MetricsLogger(run.path, samples_seen)
    trained = {"lr": 0.1, "loss": 2.0, "num_images": 24, "seconds": 3.0, "images_per_second": 8.0}
    journal.write(TRAIN, samples_seen, samples_seen / 21, **trained, data_wait=0.5)
    journal.write(VALIDATION, samples_seen, samples_seen / 21, **values)
    journal.close()


def make_run(
    folder,
    shards,
    *,
    recipe=None,
    classes=CLASSES,
    dataset="tiny",
    init_from=None,
    cost=None,
    name="a-run-50",
    imagenet1k_splits=None,
    trackio_space=None,
):
    """A run with nothing but its first line."""
    run = RunDir(folder / name)
    path = write_recipe(folder, recipe) if recipe else write_recipe(folder)
    run.create(load_recipe(str(path)), shards, dataset, classes)
    if imagenet1k_splits is not None:  # no test packs a million images
        identity = json.loads((run.path / "shards.json").read_text())
        identity["imagenet1k_splits"] = imagenet1k_splits
        (run.path / "shards.json").write_text(json.dumps(identity))
    journal = MetricsLogger(run.path, 0)
    versions = {"imagenet_rn50": "0.1.0", "torch": "2.14.1"}
    machine = {"device": "cuda (NVIDIA L4)", "world_size": 4, "mixed_precision": "bf16"}
    began = {"init_from": init_from} if init_from else {}
    began |= {"cost_usd": cost} if cost is not None else {}
    began |= {"trackio_space": trackio_space} if trackio_space else {}
    journal.write(START, 0, 0.0, **machine, python="3.11.7", versions=versions, **began)
    journal.close()
    return run


def thousand_classes():
    """ImageNet-1k's; two of them share a name."""
    names = ["crane" if index in {7, 700} else f"kind {index}" for index in range(1000)]
    return Classes(wnids=imagenet1k_wnids(), names=tuple(names))


def write_evaluation(path, model, *, weights_sha256=None, dataset=None, names=("validation",)):
    """Writes a metrics.json as `evaluate` does."""
    dataset = dataset or {
        "name": "imagenet1k",
        "split": "validation",
        "fingerprint": "d" * 64,
        "is_imagenet1k": True,
    }
    figures = {"num_images": 50000, "top1": 0.76543, "top1_low": 0.7617, "top1_high": 0.7691}
    figures |= {"top5": 0.931, "top5_low": 0.9287, "top5_high": 0.9332, "loss": 0.9, "ece": 0.02}
    row = {"transform": "training", "flip": False, **figures}
    through = row | {"transform": "processor", "top1": 0.76541}
    ways = [row, row | {"flip": True, "top1": 0.7712}, through]
    content = {
        "schema": 1,
        "model": "/home/somebody/a-model",
        "checkpoint": {"weights_sha256": weights_sha256 or weights_digest(model)},
        "dataset": dataset,
        "split": dataset["split"],
        "created": "2026-03-04T05:06:07+00:00",
        "interval": "Wilson score, 95%",
        "ece_bins": 15,
        "results": [{"name": name} | way for name in names for way in ways],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
