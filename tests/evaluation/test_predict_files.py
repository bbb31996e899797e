"""Predictions for files and folders, by the command and by its parts."""

import csv
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from imagenet_rn50.__main__ import main
from imagenet_rn50.evaluation.load_model import load_model
from imagenet_rn50.evaluation.predict import image_files, predict
from imagenet_rn50.model import load_exported, load_processor, logits_of
from imagenet_rn50.utils.errors import InputError
from tests.evaluation.models import (
    DATA,
    classes_of,
    export_model,
    label_shards,
    painted_model,
    picture_of,
    random_model,
    write_run,
)

NUM_CLASSES = 6


@pytest.fixture
def folder(tmp_path):
    """Images whose painted class is in their name, and what a folder of images also holds."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for answer, name in ((3, "a3.jpg"), (1, "sub/b1.JPEG"), (4, "c4 without suffix")):
        (folder / name).write_bytes(picture_of(answer))
    Image.new("L", (30, 20), 10 * 2 + 5).save(folder / "d2.png")
    (folder / "e cut.jpg").write_bytes(picture_of(0)[:200])
    (folder / "f fake.png").write_text("no image")
    (folder / "notes.csv").write_text("a,b")
    (folder / ".DS_Store").write_text("junk")
    return folder


def test_a_folder_is_searched_by_content_and_names_and_what_is_no_image_is_counted(folder):
    images, others = image_files([folder])
    assert sorted(path.name for path in images) == [
        *("a3.jpg", "b1.JPEG", "c4 without suffix", "d2.png", "e cut.jpg", "f fake.png"),
    ]
    assert [path.name for path in others] == ["notes.csv"]


def test_paths_without_an_image_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="there is no file or folder"):
        image_files([folder / "missing.jpg"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing to predict"):
        image_files([tmp_path / "empty"])


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_each_readable_image_gets_its_class_and_each_other_an_error(folder, batch):
    files, _ = image_files([folder])
    made = list(predict(painted_model(NUM_CLASSES), files, top=2, batch=batch))
    assert [prediction.path for prediction in made] == files
    answers = {p.path.name: p.classes[0] for p in made if p.error is None}
    assert answers == {"a3.jpg": 3, "b1.JPEG": 1, "c4 without suffix": 4, "d2.png": 2}
    assert {p.path.name for p in made if p.error} == {"e cut.jpg", "f fake.png"}
    assert all(len(p.classes) == len(p.probabilities) == 2 for p in made if p.error is None)


def test_probabilities_are_those_of_the_model_and_its_own_processor(tmp_path):
    export_model(tmp_path / "model", random_model(NUM_CLASSES))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying
    image.save(tmp_path / "image.png", exif=exif)
    (made,) = predict(load_model(str(tmp_path / "model")), [tmp_path / "image.png"], top=99)
    values = load_processor(tmp_path / "model")(image.rotate(-90, expand=True), return_tensors="pt")
    network = load_exported(tmp_path / "model")
    with torch.inference_mode():
        expected = logits_of(network, values.pixel_values).double().softmax(1)[0]
    assert sorted(made.classes) == list(range(NUM_CLASSES))
    assert made.probabilities == pytest.approx(expected[list(made.classes)].tolist())
    assert sorted(made.probabilities, reverse=True) == list(made.probabilities)


def by_command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["imagenet_rn50", "predict", *map(str, words)])
    try:
        main()
    except SystemExit as error:
        return error.code
    return 0


def test_the_command_takes_runs_and_checkpoints_and_writes_csv(
    folder, tmp_path, monkeypatch, capfd
):
    shards = label_shards(tmp_path / "shards", [4], NUM_CLASSES)
    run = write_run(tmp_path / "run", shards, NUM_CLASSES)
    table = tmp_path / "predictions.csv"
    assert by_command(monkeypatch, folder, "--model", run, "--csv", table, "--top", 2) == 1
    out, err = capfd.readouterr()
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row in rows:
        is_bad = row["path"].endswith(("e cut.jpg", "f fake.png"))
        assert bool(row["error"]) == is_bad == (row["class_1"] == "")
        assert (row["path"] in err) == is_bad
        assert (row["path"] in out) != is_bad
        if not is_bad:
            assert row["class_1"] in classes_of(NUM_CLASSES).labels
            assert float(row["probability_1"]) >= float(row["probability_2"])
    image = folder / "a3.jpg"
    lines = {}
    for name in ("best", "last"):
        assert by_command(monkeypatch, image, "--model", run, "--checkpoint", name) == 0
        lines[name] = capfd.readouterr().out
    for name, samples_seen in (("best", 24), ("last", 48)):
        checkpoint = run / "checkpoints" / f"samples-{samples_seen:09d}"
        assert by_command(monkeypatch, image, "--model", checkpoint) == 0
        assert capfd.readouterr().out == lines[name]
    assert lines["best"] != lines["last"]


@pytest.mark.parametrize("options", [("--top", "0"), ("--batch", "0"), ("--csv", "no/where.csv")])
def test_options_that_cannot_be_used_are_refused_before_the_model_is_loaded(options, refused):
    refused(main, "predict", "image.jpg", "--model", "nowhere", *options)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    shards = label_shards(tmp_path / "shards", [4], NUM_CLASSES)
    run = write_run(tmp_path / "run", shards, NUM_CLASSES)
    checkpoint = run / "checkpoints" / "samples-000000024"
    assert load_model(str(checkpoint)).data == DATA
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError):
        load_model(str(checkpoint))
    with pytest.raises(InputError, match="is a checkpoint of one"):
        load_model(str(checkpoint), "last")
