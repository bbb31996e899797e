"""Models and images for tests of evaluation: random ones, and ones whose answers are known."""

import dataclasses
import io
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from imagenet_rn50.classes import Classes
from imagenet_rn50.evaluation.load_model import LoadedModel
from imagenet_rn50.model import build_model, build_processor
from imagenet_rn50.recipe import DataRecipe, ModelRecipe, Recipe
from imagenet_rn50.runs import metrics
from imagenet_rn50.runs.checkpoint import EMA_WEIGHTS, commit, folder_name
from imagenet_rn50.runs.run_dir import RunDir
from imagenet_rn50.shards.manifest import VALIDATION, Manifest
from tests.support import write_shards

DATA = DataRecipe(train_size=16, eval_size=16, eval_resize=18)
SHAPE = ModelRecipe(embedding_size=8, hidden_sizes=(8, 8), depths=(1, 1), layer_type="basic")


def classes_of(num_classes):
    """Classes with wnids n00000000, n00000010, ... and names of one word."""
    wnids = tuple(f"n{10 * i:08d}" for i in range(num_classes))
    return Classes(wnids, tuple(f"name{i}" for i in range(num_classes)))


def random_model(num_classes, seed=0):
    """A model whose answers differ from picture to picture."""
    torch.manual_seed(seed)
    model = build_model(SHAPE, classes_of(num_classes)).eval()
    with torch.no_grad():
        model.classifier[1].weight.mul_(40)
    return model


def export_model(folder, model, data=DATA):
    """Writes a model as export does."""
    model.save_pretrained(folder)
    build_processor(data).save_pretrained(folder)


def write_run(folder, shards, num_classes, *, ema=False):
    """A run folder with two checkpoints of random weights: the first was the best."""
    run = RunDir(folder)
    run.create(Recipe(model=SHAPE, data=DATA), shards, "tiny", classes_of(num_classes))
    for samples_seen in (24, 48):
        temporary = run.checkpoints / "new.partial"
        temporary.mkdir(parents=True)
        state = random_model(num_classes, seed=samples_seen).state_dict()
        save_file(state, temporary / "model.safetensors")
        if ema:
            averaged = random_model(num_classes, seed=samples_seen + 1).state_dict()
            save_file(averaged, temporary / EMA_WEIGHTS)
        final = run.checkpoints / folder_name(samples_seen)
        commit(temporary, final, samples_seen, is_best=samples_seen == 24, metadata={})
        journal = metrics.MetricsLogger(folder, samples_seen)
        scores = {"top1": 12 / samples_seen} | ({"ema_top1": 18 / samples_seen} if ema else {})
        journal.write(metrics.VALIDATION, samples_seen, 1.0, **scores)
        journal.close()
    return folder


def label_shards(folder, sizes, num_classes, *, keys=None):
    """Shards of random pictures with random labels of some classes, and keys of one's own."""
    manifest = write_shards(folder, train=[1], validation=sizes)
    split = manifest.splits[VALIDATION]
    labels = np.random.default_rng(7).integers(0, num_classes, split.num_samples).astype(np.int32)
    changes = {"labels": labels} | ({} if keys is None else {"keys": np.array(keys, dtype="S")})
    splits = {VALIDATION: dataclasses.replace(split, **changes)}
    Manifest(dataset="tiny", options={}, splits=splits).save(folder)
    classes_of(num_classes).save(folder)
    return folder


def gray_jpeg(level):
    """A JPEG of one gray level."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 24), level, np.uint8)).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def picture_of(answer):
    """A picture that `Painted` takes for the class `answer`."""
    return gray_jpeg(10 * answer + 5)


class Painted(torch.nn.Module):
    """Answers the class that is painted as a gray level; others follow by their distance to it.

    Of two at the same distance the higher one comes first.
    """

    def __init__(self, num_classes):
        super().__init__()
        self.register_buffer("classes", torch.arange(num_classes, dtype=torch.float32))

    def forward(self, pixel_values):
        level = (pixel_values.mean((2, 3))[:, 0] * DATA.std[0] + DATA.mean[0]) * 255
        distance = (self.classes - (level[:, None] - 5) / 10 - 0.25).abs()
        return SimpleNamespace(logits=-distance)


def painted_model(num_classes, classes=None):
    """The `Painted` model, ready to be evaluated."""
    classes = classes or classes_of(num_classes)
    return LoadedModel(
        name="painted",
        network=Painted(num_classes),
        labels=classes.labels,
        processor=build_processor(DATA),
        data=DATA,
        classes=classes,
        checkpoint={},
    )
