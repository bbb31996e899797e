import shutil

import pytest
from PIL import Image

from imagenet_rn50.publishing.export import ExportOptions, export
from imagenet_rn50.runs.run_dir import RunDir
from tests.publishing.runs import (
    make_run,
    random_model,
    save_checkpoint,
    thousand_classes,
    write_evaluation,
)
from tests.support import write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, train=[4], validation=[6, 5])
    return folder


@pytest.fixture(scope="session")
def intact_run(tmp_path_factory, shards):
    """A run with three checkpoints; the second was the best."""
    run = make_run(tmp_path_factory.mktemp("run"), shards)
    for samples_seen, top1 in ((24, 0.25), (48, 0.625), (72, 0.5)):
        save_checkpoint(run, samples_seen, top1, is_best=samples_seen < 50)
    return run.path


@pytest.fixture
def run(tmp_path, intact_run):
    """A copy of that run, which a test may change."""
    return RunDir(shutil.copytree(intact_run, tmp_path / intact_run.name))


@pytest.fixture(scope="session")
def imagenet_export(tmp_path_factory, shards):
    """An export with all that a card can have: evaluated, ImageNet's classes, averaged, drawn."""
    folder = tmp_path_factory.mktemp("imagenet")
    origin = {"name": "resnet50-0676ba61.pth", "sha256": "0676ba61" * 8, "classifier": "kept"}
    names = {"classes": thousand_classes(), "dataset": "imagenet1k", "name": "50"}
    names["imagenet1k_splits"] = ["train", "validation"]
    run = make_run(folder, shards, **names, init_from=origin)
    save_checkpoint(run, 48, 0.625, ema_top1=0.7654321, is_best=True)
    (run.path / "plots").mkdir()
    for name in ("accuracy", "loss"):
        Image.new("RGB", (4, 4)).save(run.path / "plots" / f"{name}.png")
    averaged = random_model(run.recipe().model, thousand_classes(), 49)
    metrics = write_evaluation(folder / "metrics.json", averaged)
    export(run.path, folder / "out", options=ExportOptions(metrics=metrics))
    return folder / "out"


@pytest.fixture
def card(imagenet_export):
    """The card, which is put back afterwards."""
    path = imagenet_export / "README.md"
    text = path.read_text(encoding="utf-8")
    yield path
    path.write_text(text, encoding="utf-8")
