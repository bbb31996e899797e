"""`.eval_results/`, which the Hub's leaderboards read."""

import json

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from imagenet_rn50.publishing.export import ExportOptions, export
from imagenet_rn50.publishing.hub import stage_model
from imagenet_rn50.publishing.provenance import unsourced_numbers
from tests.publishing.runs import (
    make_run,
    random_model,
    save_checkpoint,
    thousand_classes,
    write_evaluation,
)

FILE = ".eval_results/imagenet-1k.yaml"


def entries_of(folder):
    text = (folder / FILE).read_text(encoding="utf-8")
    return parse_eval_result_entries(yaml.safe_load(text))


def test_the_published_result_on_imagenet_is_there_in_the_hubs_format(imagenet_export):
    [entry] = entries_of(imagenet_export)
    assert (entry.dataset_id, entry.value) == ("ILSVRC/imagenet-1k", 0.76541)
    assert entry.date == "2026-03-04T05:06:07+00:00"
    assert "metrics.json, results.2.top1" in entry.notes
    assert entry.source_url is None


def test_a_push_adds_the_address_of_the_source_and_no_other_hidden_file(imagenet_export, tmp_path):
    (imagenet_export / ".eval_results" / "notes.txt").write_text("mine")
    stage_model(imagenet_export, "user/model", tmp_path / "stage")
    (imagenet_export / ".eval_results" / "notes.txt").unlink()
    [entry] = entries_of(tmp_path / "stage")
    assert entry.source_url == "https://huggingface.co/user/model/blob/main/metrics.json"
    assert [path.name for path in (tmp_path / "stage" / ".eval_results").iterdir()] == [
        "imagenet-1k.yaml"
    ]
    assert entries_of(imagenet_export)[0].source_url is None
    assert [p for p in unsourced_numbers(tmp_path / "stage") if FILE in p] == []


def test_without_an_evaluation_it_is_that_of_the_validation_during_training(tmp_path, shards):
    classes, splits = thousand_classes(), ["train", "validation"]
    run = make_run(tmp_path, shards, classes=classes, imagenet1k_splits=splits)
    save_checkpoint(run, 24, 0.5, is_best=True)
    export(run.path, tmp_path / "out")
    [entry] = entries_of(tmp_path / "out")
    line = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[2])
    assert (entry.value, entry.date) == (0.5, line["time"])
    assert unsourced_numbers(tmp_path / "out") == []


@pytest.mark.parametrize(
    "dataset",
    [
        {"name": "imagenet1k", "split": "validation", "fingerprint": "0" * 64},
        {"name": "i1k", "split": "train", "fingerprint": "0" * 64, "is_imagenet1k": True},
    ],
    ids=["only called so", "images of the training"],
)
def test_other_results_are_not_for_its_leaderboard(run, tmp_path, dataset):
    model = random_model(run.recipe().model, run.classes(), 48)
    metrics = write_evaluation(tmp_path / "m.json", model, dataset=dataset)
    export(run.path, tmp_path / "out", options=ExportOptions(metrics=metrics))
    assert not (tmp_path / "out" / FILE).exists()


def test_an_export_without_a_result_replaces_one_with_it(imagenet_export, run, tmp_path):
    stage_model(imagenet_export, "user/model", tmp_path / "out")
    assert (tmp_path / "out" / FILE).is_file()
    export(run.path, tmp_path / "out")
    assert not (tmp_path / "out" / FILE).exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("value: 0.76541", "value: 0.86541"),
        ("results.2.top1", "results.1.top1"),
        ("results.2.top1", "results.9.top1"),
        ("2026-03-04", "2026-03-05"),
        ("source: metrics.json, results.2.top1", "measured here"),
        ("ILSVRC/imagenet-1k", "cais/hle"),
        ("notes:", "note: 99\n  notes:"),
        ("- dataset:", "- 99.9\n- dataset:"),
    ],
)
def test_a_result_that_differs_from_its_source_is_found(imagenet_export, before, after):
    path = imagenet_export / FILE
    text = path.read_text(encoding="utf-8")
    assert before in text
    try:
        path.write_text(text.replace(before, after, 1), encoding="utf-8")
        assert any(FILE in problem for problem in unsourced_numbers(imagenet_export))
    finally:
        path.write_text(text, encoding="utf-8")
