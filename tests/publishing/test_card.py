"""A card says of every number where it stands, and nothing else passes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file

from imagenet_rn50.model import build_model, to_torchvision
from imagenet_rn50.publishing import provenance as evidence
from imagenet_rn50.publishing.export import ExportOptions, convert, export
from imagenet_rn50.publishing.provenance import unsourced_numbers
from imagenet_rn50.recipe import ModelRecipe
from imagenet_rn50.utils.errors import InputError
from tests.commands import ROOT, check, commands_in
from tests.publishing.runs import (
    RESNET50_RECIPE,
    make_run,
    random_model,
    save_checkpoint,
    thousand_classes,
    write_evaluation,
)
from tests.support import CLASSES


def visible(text):
    return re.sub("<!--.*?-->", "", text)


def test_the_card_says_what_the_files_beside_it_say(imagenet_export):
    text = visible((imagenet_export / "README.md").read_text(encoding="utf-8"))
    assert (
        "| imagenet1k, validation (not the shards of the training), as published, "
        "processor transform | 76.54% (76.17% to 76.91%) "
        "| 93.10% (92.87% to 93.32%) | 50,000 | metrics.json results.2 |" in text
    )
    assert "averaged with its mirror image | 77.12% (" in text
    assert "| imagenet1k, validation during training | 76.54% | 100.00% | 11 |" in text
    assert "| device | cuda (NVIDIA L4) | metrics.jsonl line 1 |" in text
    assert "| minutes of training and validation | 0.1 | metrics.jsonl, all lines |" in text
    assert "| initial weights | resnet50-0676ba61.pth | metrics.jsonl line 1 |" in text
    assert "1,000 classes" in text
    assert "| torchvision, IMAGENET1K_V2 | 80.86% | 95.43% | [its authors](https://" in text
    assert text.count("not reproduced here") == 3
    assert "--checkpoint best --weights ema" in text
    assert "![loss over epochs](plots/loss.png)" in text
    assert (imagenet_export / "plots" / "loss.png").is_file()
    assert "somebody" not in (imagenet_export / "metrics.json").read_text(encoding="utf-8")
    recipe = (imagenet_export / "recipe.yaml").read_text(encoding="utf-8")
    assert f"```yaml\n{recipe}```" in text


def test_the_hub_reads_the_metadata(imagenet_export):
    data = ModelCard.load(imagenet_export / "README.md").data
    assert data.license is None  # it began with weights of others
    assert data.library_name == "transformers"
    assert data.datasets == ["ILSVRC/imagenet-1k"]
    assert data.pipeline_tag == "image-classification"
    results = [(result.metric_name, result.metric_value) for result in data.eval_results]
    assert results == [("top-1", 0.76541), ("top-5", 0.931)]  # as published, no mirror images


def test_every_card_that_is_written_passes(imagenet_export, run, tmp_path):
    export(run.path, tmp_path / "out")
    assert unsourced_numbers(imagenet_export) == []
    assert unsourced_numbers(tmp_path / "out") == []
    card = ModelCard.load(tmp_path / "out" / "README.md").data
    assert card.license == "apache-2.0"
    # Of three classes, naming five names the right one always.
    assert [(r.metric_name, r.metric_value) for r in card.eval_results] == [("top-1", 0.625)]
    text = visible((tmp_path / "out" / "README.md").read_text())
    assert "| tiny, validation during training | 62.50% | - | 11 |" in text
    assert "A ResNet that classifies images into 3 classes" in text
    assert "published ResNet-50s" not in text


@pytest.mark.parametrize(
    ("dataset", "names", "row", "credited"),
    [
        (
            {"name": "i1k", "split": "train", "fingerprint": "0" * 64, "is_imagenet1k": True},
            ["train", "real"],
            "| i1k, train, labels of ReaL (not the shards of the training), as published",
            [("ILSVRC/imagenet-1k", "train"), ("i1k-real", "train")],
        ),
        (
            {"name": "v2-80", "split": "test", "layout": "imagenetv2"},
            ["v2-80"],
            "| v2-80, as published",
            [("v2-80", "test")],
        ),
    ],
)
def test_what_was_measured_is_credited_to_the_data_that_it_was_measured_on(
    run, tmp_path, dataset, names, row, credited
):
    model = random_model(run.recipe().model, CLASSES, 48)
    metrics = write_evaluation(tmp_path / "m.json", model, dataset=dataset, names=names)
    export(run.path, tmp_path / "out", options=ExportOptions(metrics=metrics))
    path = tmp_path / "out" / "README.md"
    data = ModelCard.load(path).data
    found = {(result.dataset_type, result.dataset_split) for result in data.eval_results}
    assert found == set(credited)
    assert data.datasets is None  # it was trained on others
    assert row in visible(path.read_text(encoding="utf-8"))
    assert unsourced_numbers(tmp_path / "out") == []


@pytest.mark.parametrize("splits", [None, [], ["validation"]])
def test_a_run_over_data_that_is_only_called_imagenet1k_claims_nothing(tmp_path, shards, splits):
    run = make_run(tmp_path, shards, dataset="imagenet1k", imagenet1k_splits=splits)
    save_checkpoint(run, 24, 0.5, is_best=True)
    identity = json.loads((run.path / "shards.json").read_text())
    if splits is None:  # of a run that was begun before this was recorded
        del identity["imagenet1k_splits"]
        (run.path / "shards.json").write_text(json.dumps(identity))
    export(run.path, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.datasets is None
    types = {result.dataset_type for result in card.data.eval_results}
    assert types == {"ILSVRC/imagenet-1k" if splits else "unverified-imagenet1k"}
    assert "trained on imagenet1k (not shown to be ImageNet-1k)" in visible(card.text)
    assert "published ResNet-50s" not in card.text
    assert "no commercial use" not in card.text
    assert unsourced_numbers(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["imagenet1k", "ILSVRC-2012"])
def test_an_evaluation_over_images_that_are_only_called_imagenet1k_claims_nothing(
    run, tmp_path, name
):
    model = random_model(run.recipe().model, CLASSES, 48)
    dataset = {"name": name, "split": "validation", "fingerprint": "0" * 64}
    metrics = write_evaluation(tmp_path / "m.json", model, dataset=dataset)
    export(run.path, tmp_path / "out", options=ExportOptions(metrics=metrics))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert {r.dataset_type for r in card.data.eval_results} == {f"unverified-{name}"}
    assert f"| {name} (not shown to be ImageNet-1k), validation" in visible(card.text)
    assert unsourced_numbers(tmp_path / "out") == []


def test_weights_of_others_that_were_evaluated_on_imagenet_have_its_limits(tmp_path):
    model = random_model(ModelRecipe(hidden_sizes=(8, 8), depths=(1, 1)), thousand_classes(), 3)
    save_file(to_torchvision(model.state_dict()), tmp_path / "rn.safetensors")
    metrics = write_evaluation(tmp_path / "metrics.json", model)
    convert(
        str(tmp_path / "rn.safetensors"), tmp_path / "out", options=ExportOptions(metrics=metrics)
    )
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert {result.dataset_type for result in card.data.eval_results} == {"ILSVRC/imagenet-1k"}
    assert "published ResNet-50s" in card.text
    assert "no commercial use" in card.text
    assert "the fingerprint dddd" in card.text


def test_the_commands_lead_to_the_card(imagenet_export, run, tmp_path, monkeypatch):
    commands = commands_in(imagenet_export / "README.md")
    monkeypatch.chdir(ROOT)
    for command in commands:
        check(command)
    verbs = [command.words[3] if command.words[1] == "-m" else "" for command in commands]
    assert verbs == ["", "", "export", "evaluate", "export"]
    assert "--init-from WEIGHTS" in commands[1].text
    assert commands[3].words[-5:] == ["--out", "EVALUATION", "--shards", "SHARDS", "--flip"]
    assert commands[4].text.endswith("--metrics EVALUATION/metrics.json")
    text = visible((imagenet_export / "README.md").read_text(encoding="utf-8"))
    assert f"whose sha256 is\n{'0676ba61' * 8} (metrics.jsonl line 1)" in text
    assert "Their license applies" in text

    export(run.path, tmp_path / "out")  # nothing was evaluated
    assert len(commands_in(tmp_path / "out" / "README.md")) == 3


def test_an_evaluation_of_other_weights_is_refused_or_left_out(run, tmp_path, capsys):
    model = build_model(run.recipe().model, CLASSES)
    metrics = write_evaluation(tmp_path / "metrics.json", model, weights_sha256="0" * 64)
    with pytest.raises(InputError, match="was measured with other weights"):
        export(run.path, tmp_path / "out", options=ExportOptions(metrics=metrics))
    (run.path / "evaluation").mkdir()
    metrics.rename(run.path / "evaluation" / "metrics.json")
    export(run.path, tmp_path / "out")
    assert "omitted from the card" in capsys.readouterr().out
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_metrics_json_that_is_none_is_refused(run, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"top1": 0.9}))
    with pytest.raises(InputError, match="not written by evaluate"):
        export(run.path, tmp_path / "out", options=ExportOptions(metrics=tmp_path / "metrics.json"))
    with pytest.raises(InputError, match="there is no file"):
        export(run.path, tmp_path / "out", options=ExportOptions(metrics=tmp_path / "nothing.json"))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_snippet_runs_in_a_process_of_its_own(run, tmp_path):
    export(run.path, tmp_path / "out")
    folder = tmp_path / "out"
    done = subprocess.run(  # where none of our code can be found
        [sys.executable, "-c", snippet_of(folder)],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert names_a_class(folder, done.stdout)


@pytest.mark.parametrize(
    "form", ["transformers", "torchvision", pytest.param("onnx", marks=[pytest.mark.slow])]
)
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns of itself
def test_the_snippet_runs_as_it_stands_in_the_card(tmp_path, shards, form, monkeypatch, capsys):
    recipe = None if form == "transformers" else RESNET50_RECIPE
    run = make_run(tmp_path, shards, recipe=recipe)
    save_checkpoint(run, 24, 0.5, is_best=True)
    folder = tmp_path / "out"
    export(run.path, folder, options=ExportOptions(form=form))
    snippet = snippet_of(folder)
    assert "imagenet_rn50" not in snippet
    capsys.readouterr()
    monkeypatch.chdir(folder)
    for name in [name for name in sys.modules if name.startswith("imagenet_rn50")]:
        monkeypatch.setitem(sys.modules, name, None)  # none of our code can be imported
    exec(snippet, {})
    assert names_a_class(folder, capsys.readouterr().out)


def snippet_of(folder):
    """Returns the Python of a card, and puts the picture there that it speaks of."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    [snippet] = re.findall("```python\n(.*?)```", text, re.S)
    Image.new("RGB", (50, 40), (200, 30, 30)).save(folder / "image.jpg")
    return snippet


def names_a_class(folder, said):
    config = json.loads((folder / "config.json").read_text())
    return any(label in said for label in config["id2label"].values())


def test_the_published_figures_all_have_an_address():
    path = Path(evidence.__file__).with_name("published.yaml")
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert len(entries) >= 3
    assert all(entry["url"].startswith("https://") for entry in entries.values())


@pytest.mark.parametrize(
    ("costs", "row"),
    [
        ((12.345, 20.5), "| cost, USD | 20.50 | metrics.jsonl, all lines |"),
        ((12.345, None), "| cost, USD | not recorded |  |"),  # a process whose price nobody knows
    ],
)
def test_the_cost_stands_in_the_card_where_every_process_knew_its_price(
    tmp_path, shards, costs, row
):
    run = make_run(tmp_path, shards, cost=costs[0])
    save_checkpoint(run, 48, 0.625, is_best=True)
    line = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0])
    line = {key: value for key, value in line.items() if key != "cost_usd"}
    line |= {"cost_usd": costs[1]} if costs[1] is not None else {}
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    export(run.path, tmp_path / "out")
    assert row in visible((tmp_path / "out" / "README.md").read_text())
    assert unsourced_numbers(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("top1", "shown"), [(0.99998, "99.998%"), (0.0, "0.00%"), (1.0, "100.00%")]
)
def test_a_card_rounds_no_accuracy_to_all_or_nothing(tmp_path, shards, top1, shown):
    run = make_run(tmp_path, shards)
    save_checkpoint(run, 24, top1)
    export(run.path, tmp_path / "out")
    text = visible((tmp_path / "out" / "README.md").read_text())
    assert f"validation during training | {shown} |" in text
    assert unsourced_numbers(tmp_path / "out") == []
