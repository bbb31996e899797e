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

from imagenet_rn50.errors import InputError
from imagenet_rn50.model import build_model
from imagenet_rn50.publishing import evidence
from imagenet_rn50.publishing.export import Wanted, export
from imagenet_rn50.publishing.trace import untraced
from tests.publishing.runs import (
    RESNET50_RECIPE,
    make_run,
    random_model,
    save_checkpoint,
    thousand_classes,
    write_evaluation,
)
from tests.support import CLASSES


@pytest.fixture(scope="module")
def imagenet_export(tmp_path_factory, shards):
    """An export with all that a card can have: evaluated, ImageNet's classes, averaged, drawn."""
    folder = tmp_path_factory.mktemp("imagenet")
    origin = {"name": "resnet50-0676ba61.pth", "sha256": "0676ba61" * 8, "classifier": "kept"}
    names = {"classes": thousand_classes(), "dataset": "imagenet1k"}
    run = make_run(folder, shards, **names, init_from=origin)
    save_checkpoint(run, 48, 0.625, ema_top1=0.7654321, is_best=True)
    (run.path / "plots").mkdir()
    for name in ("accuracy", "loss"):
        Image.new("RGB", (4, 4)).save(run.path / "plots" / f"{name}.png")
    averaged = random_model(run.recipe().model, thousand_classes(), 49)
    metrics = write_evaluation(folder / "metrics.json", averaged)
    export(run.path, folder / "out", wanted=Wanted(metrics=metrics))
    return folder / "out"


@pytest.fixture
def card(imagenet_export):
    """The card, which is put back afterwards."""
    path = imagenet_export / "README.md"
    text = path.read_text(encoding="utf-8")
    yield path
    path.write_text(text, encoding="utf-8")


def visible(text):
    return re.sub("<!--.*?-->", "", text)


def test_the_card_says_what_the_files_beside_it_say(imagenet_export):
    text = visible((imagenet_export / "README.md").read_text(encoding="utf-8"))
    assert (
        "| validation, as published, processor transform | 76.54% (76.17% to 76.91%) "
        "| 93.10% (92.87% to 93.32%) | 50,000 | metrics.json results.2 |" in text
    )
    assert "averaged with its mirror image | 77.12% (" in text
    assert "| `imagenet1k`, validation while training | 76.54% | 100.00% | 11 |" in text
    assert "| device | cuda (NVIDIA L4) | metrics.jsonl line 1 |" in text
    assert "| minutes of training and validation | 0.1 | metrics.jsonl, all lines |" in text
    assert "| began with the weights | resnet50-0676ba61.pth | metrics.jsonl line 1 |" in text
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
    assert data.license == "apache-2.0"
    assert data.library_name == "transformers"
    assert data.datasets == ["ILSVRC/imagenet-1k"]
    assert data.pipeline_tag == "image-classification"
    results = [(result.metric_name, result.metric_value) for result in data.eval_results]
    assert results == [("top-1", 0.76541), ("top-5", 0.931)]  # as published, no mirror images


def test_every_card_that_is_written_passes(imagenet_export, run, tmp_path):
    export(run.path, tmp_path / "out")
    assert untraced(imagenet_export) == []
    assert untraced(tmp_path / "out") == []
    card = ModelCard.load(tmp_path / "out" / "README.md").data
    assert [result.metric_value for result in card.eval_results] == [0.625, 1.0]
    assert "published ResNet-50s" not in (tmp_path / "out" / "README.md").read_text()


PLANTED = {
    "a number in a sentence": (
        "## Limits and bias\n",
        "## Limits and bias\n\nIt is 78.9% right.\n",
    ),
    "a bare count": ("with imagenet_rn50.", "with imagenet_rn50 on 8 GPUs."),
    "a unit that clings to it": ("with imagenet_rn50.", "with imagenet_rn50 in 16h."),
    "a decimal without zero": ("with imagenet_rn50.", "with imagenet_rn50, error .25 at most."),
    "a comment in code": ("```python\n", "```python\n# reaches 80% top-1\n"),
    "code in a line": ("with imagenet_rn50.", "with imagenet_rn50 (`top1 = 0.8`)."),
    "another digit": ("76.54%<!--metrics.json results.2", "76.64%<!--metrics.json results.2"),
    "rounded up": ("76.54%<!--metrics.json results.2", "76.6%<!--metrics.json results.2"),
    "another line": ("<!--metrics.jsonl:3 ema_top1-->", "<!--metrics.jsonl:2 ema_top1-->"),
    "another field": ("<!--metrics.jsonl:3 ema_top1-->", "<!--metrics.jsonl:3 top1-->"),
    "no such line": ("<!--metrics.jsonl:3 ema_top1-->", "<!--metrics.jsonl:99 ema_top1-->"),
    "no such file": ("<!--metrics.jsonl:3 ema_top1-->", "<!--notes.txt:3 ema_top1-->"),
    "no mark": ("<!--metrics.jsonl:3 ema_top1-->", ""),
    "a source that nobody sees": (" | metrics.jsonl line 3 |", " | our logs |"),
    "another published figure": ("80.86%<!--published", "81.86%<!--published"),
    "another recipe": ("epochs: 2\n", "epochs: 3\n"),
    "another figure in the metadata": ("value: 0.76541\n", "value: 0.86541\n"),
    "another source in the metadata": ("field: results.2.top1\n", "field: results.1.top1\n"),
    "no source in the metadata": ("        field: results.2.top1\n", ""),
    "a number in a tag": ("- vision\n", "- vision\n- top1 0.81\n"),
    "another device": ("cuda (NVIDIA L4)", "cuda (NVIDIA H100)"),
    "hidden in a comment": ("with imagenet_rn50.", "with imagenet_rn50. <!-- 80% -->"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_number_is_found(card, what):
    before, after = PLANTED[what]
    text = card.read_text(encoding="utf-8")
    assert before in text
    card.write_text(text.replace(before, after, 1), encoding="utf-8")
    assert untraced(card.parent) != []


def test_names_and_links_are_no_numbers(card):
    text = card.read_text(encoding="utf-8")
    names = "See [the paper](https://arxiv.org/abs/1512.03385): ResNet-50 on ImageNet-1k, top-1.\n"
    card.write_text(text.replace("## Limits and bias\n", f"## Limits and bias\n\n{names}", 1))
    assert untraced(card.parent) == []


def test_what_cannot_be_traced_is_not_exported(run, tmp_path, monkeypatch):
    monkeypatch.setattr("imagenet_rn50.publishing.card.LIMITS", "Wrong in 1 of 5 cases.")
    with pytest.raises(RuntimeError, match=r"1 has no source.*5 has no source"):
        export(run.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_evaluation_of_other_weights_is_refused_or_left_out(run, tmp_path, capsys):
    model = build_model(run.recipe().model, CLASSES)
    metrics = write_evaluation(tmp_path / "metrics.json", model, weights_sha256="0" * 64)
    with pytest.raises(InputError, match="speaks of other weights"):
        export(run.path, tmp_path / "out", wanted=Wanted(metrics=metrics))
    (run.path / "evaluation").mkdir()
    metrics.rename(run.path / "evaluation" / "metrics.json")
    export(run.path, tmp_path / "out")
    assert "left out of the card" in capsys.readouterr().out
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_metrics_json_that_is_none_is_refused(run, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"top1": 0.9}))
    with pytest.raises(InputError, match="not written by evaluate"):
        export(run.path, tmp_path / "out", wanted=Wanted(metrics=tmp_path / "metrics.json"))
    with pytest.raises(InputError, match="there is no file"):
        export(run.path, tmp_path / "out", wanted=Wanted(metrics=tmp_path / "nothing.json"))


@pytest.mark.multiprocess
def test_the_snippet_runs_as_it_stands_in_the_card(run, tmp_path):
    export(run.path, tmp_path / "out")
    run_snippet(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("form", ["torchvision", "onnx"])
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns of itself
def test_so_do_the_snippets_of_the_other_formats(tmp_path, shards, form):
    run = make_run(tmp_path, shards, recipe=RESNET50_RECIPE)
    save_checkpoint(run, 24, 0.5, is_best=True)
    export(run.path, tmp_path / "out", wanted=Wanted(form=form))
    run_snippet(tmp_path / "out")


def run_snippet(folder):
    """Runs the Python of a card, in its folder, where none of our code can be found."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    [snippet] = re.findall("```python\n(.*?)```", text, re.S)
    Image.new("RGB", (50, 40), (200, 30, 30)).save(folder / "picture.jpg")
    done = subprocess.run(
        [sys.executable, "-c", snippet + "\nimport sys; assert 'imagenet_rn50' not in sys.modules"],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((folder / "config.json").read_text())
    assert any(label in done.stdout for label in config["id2label"].values())


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
    assert untraced(tmp_path / "out") == []
