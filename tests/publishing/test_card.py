"""A card says of every number where it stands, and nothing else passes."""

import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import ResNet50_Weights
from transformers import ResNetConfig

from imagenet_rn50.classes import Classes
from imagenet_rn50.model import build_model, to_torchvision
from imagenet_rn50.publishing import export as export_module
from imagenet_rn50.publishing import provenance as evidence
from imagenet_rn50.publishing.export import ExportOptions, convert, export
from imagenet_rn50.publishing.model_stats import model_stats
from imagenet_rn50.publishing.provenance import unsourced_numbers
from imagenet_rn50.recipe import ModelRecipe
from imagenet_rn50.shards.store import LocalShards
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
from tests.support import CLASSES, TINY_RECIPE


def visible(text):
    return re.sub("<!--.*?-->", "", text)


def test_the_card_says_what_the_files_beside_it_say(imagenet_export):
    text = visible((imagenet_export / "README.md").read_text(encoding="utf-8"))
    assert (
        "| imagenet1k, validation (not the shards of the training), as published, "
        "processor transform | 76.54% (76.17% to 76.91%) "
        "| 93.10% (92.87% to 93.32%) | 2.00% | 50,000 | metrics.json results.2 |" in text
    )
    assert "averaged with its mirror image | 77.12% (" in text
    assert "| imagenet1k, validation during training | 76.54% | 100.00% | - | 11 |" in text
    assert "Wilson score, 95%" in text
    assert "over 15 bins" in text
    assert "| device | cuda (NVIDIA L4) | metrics.jsonl line 1 |" in text
    assert "| minutes of training and validation | 0.1 | metrics.jsonl, all lines |" in text
    assert "| initial weights | resnet50-0676ba61.pth | metrics.jsonl line 1 |" in text
    assert "1,000 classes" in text
    assert "IMAGENET1K_V2 | 600 | 224 | 80.858% | 95.434% | [torchvision 0.29.1](https://" in text
    assert "| **this model** | 2.29 | 16 | 76.54% | 93.10% | preprocessor_config.json," in text
    assert "| 100 | 224 | 78.1% | - | [arXiv 2110.00476](https://" in text
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
    assert "| tiny, validation during training | 62.50% | - | - | 11 |" in text
    assert "A ResNet that classifies images into 3 classes" in text
    assert "Published ResNet-50s" not in text


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
    assert "Published ResNet-50s" not in card.text
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
    assert "Published ResNet-50s" in card.text
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
        [sys.executable, "-c", "\n".join(list(snippets_of(folder).values())[:3])],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert names_a_class(folder, done.stdout)


FEATURES, EMBEDDING, ONNX = "Feature maps", "Embedding", "ONNX"


def run_snippets(folder, names, monkeypatch, capsys):
    """Runs the card's snippets in order, where none of our code can be imported."""
    snippets = snippets_of(folder)
    assert "imagenet_rn50" not in "".join(snippets.values())
    monkeypatch.chdir(folder)
    for name in [name for name in sys.modules if name.startswith("imagenet_rn50")]:
        monkeypatch.setitem(sys.modules, name, None)
    variables: dict[str, Any] = {}
    said = {}
    for name in names:
        capsys.readouterr()
        exec(snippets[name], variables)
        said[name] = capsys.readouterr().out
    return snippets, variables, said


@pytest.mark.parametrize(
    "form", ["transformers", pytest.param("torchvision", marks=[pytest.mark.slow])]
)
def test_snippets_classify_and_compute_features_and_embeddings(
    tmp_path, shards, form, monkeypatch, capsys
):
    run = make_run(tmp_path, shards, recipe=None if form == "transformers" else RESNET50_RECIPE)
    save_checkpoint(run, 24, 0.5, is_best=True)
    folder = tmp_path / "out"
    export(run.path, folder, options=ExportOptions(form=form))
    names = ["Classify", FEATURES, EMBEDDING]
    snippets, variables, said = run_snippets(folder, names, monkeypatch, capsys)
    assert list(snippets) == [*names, ONNX]
    assert names_a_class(folder, said["Classify"])
    widths = [8, 8] if form == "transformers" else [256, 512, 1024, 2048]
    assert [features.shape[1] for features in variables["stages"]] == widths
    embedding = variables["embedding"]
    assert embedding.shape == (widths[-1],)
    assert torch.allclose(embedding, variables["stages"][-1].mean((2, 3))[0])
    # It is what the classifier takes.
    model = variables["model"]
    is_ours = form == "transformers"
    pixels = variables["inputs"]["pixel_values"] if is_ours else variables["image"][None]
    with torch.no_grad():
        logits = (model.classifier if is_ours else model.fc)(embedding[None])
        whole = model(pixels)
    assert torch.allclose(logits, whole.logits if is_ours else whole, atol=1e-4)


@pytest.mark.slow  # of torch's exporter
@pytest.mark.parametrize("form", ["transformers", "torchvision", "onnx"])
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns of itself
def test_every_snippet_runs_as_it_stands_in_the_card(tmp_path, shards, form, monkeypatch, capsys):
    run = make_run(tmp_path, shards, recipe=None if form == "transformers" else RESNET50_RECIPE)
    save_checkpoint(run, 24, 0.5, is_best=True)
    folder = tmp_path / "out"
    export(run.path, folder, options=ExportOptions(form=form))
    names = list(snippets_of(folder))
    assert names == (["Classify"] if form == "onnx" else ["Classify", FEATURES, EMBEDDING, ONNX])
    _, _, said = run_snippets(folder, names, monkeypatch, capsys)
    assert names_a_class(folder, said["Classify"])
    if form != "onnx":  # of the same image
        [label] = [name for name in labels_of(folder) if name in said[ONNX]]
        assert label in said["Classify"]


def snippets_of(folder):
    """Returns the Python of a card by headings, and puts the picture there that it speaks of."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"### ([^\n]+)\n(?:(?!```).)*?```python\n(.*?)```", text, re.S)
    Image.new("RGB", (50, 40), (200, 30, 30)).save(folder / "image.jpg")
    return dict(snippets)


def names_a_class(folder, said):
    return any(label in said for label in labels_of(folder))


def labels_of(folder):
    return json.loads((folder / "config.json").read_text())["id2label"].values()


def test_published_figures_have_an_address_and_a_date_and_torchvisions_are_its_own():
    path = Path(evidence.__file__).with_name("published.yaml")
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    for entry in entries.values():
        assert entry["url"].startswith("https://")
        assert datetime.date.fromisoformat(entry["date"]) <= datetime.date(2026, 11, 26)
    for key, weights in {"v1": "IMAGENET1K_V1", "v2": "IMAGENET1K_V2"}.items():
        published = ResNet50_Weights[weights].meta["_metrics"]["ImageNet-1K"]
        found = entries[f"torchvision-{key}"]
        assert [100 * found["top1"], 100 * found["top5"]] == pytest.approx(list(published.values()))


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


def opening(folder):
    """Returns the paragraphs between the title and the first heading."""
    text = visible((folder / "README.md").read_text(encoding="utf-8"))
    body = text.split("\n# ", 1)[1].split("\n", 1)[1]
    return [part.strip() for part in body.split("\n## ", 1)[0].strip().split("\n\n")]


def test_the_card_opens_with_what_the_model_is_and_its_result(imagenet_export, run, tmp_path):
    what, result = opening(imagenet_export)
    assert what.startswith("A ResNet that classifies images into 1,000 classes")
    assert "trained on imagenet1k (`shards.json`)" in what
    assert result == (
        "**76.54% top-1** (95% interval 76.17% to 76.91%) and **93.10% top-5** accuracy on 50,000 "
        "images of imagenet1k, validation split (metrics.json results.2)."
    )
    export(run.path, tmp_path / "out")
    assert opening(tmp_path / "out")[1] == (
        "**62.50% top-1** accuracy on 11 images of tiny, validation split during training "
        "(metrics.jsonl line 5, shards.json)."
    )


def table_of(folder, heading):
    """Returns the first table under a heading: the second cell of each row by the first."""
    text = visible((folder / "README.md").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|", text.split(f"## {heading}\n", 1)[1], re.M)
    return dict(rows)


def test_a_resnet50s_size_and_cost_are_those_that_torchvision_and_timm_state():
    stats = model_stats(ResNetConfig(num_labels=1000), 224)
    stated = ResNet50_Weights.IMAGENET1K_V1.meta
    assert stats["parameters"] == stated["num_params"]
    assert stats["gmacs"] == pytest.approx(stated["_ops"], abs=5e-4)
    assert stats["activations"] == pytest.approx(11.11, abs=5e-3)  # timm's "macts"


def test_the_card_has_the_sizes_of_the_model_and_its_images(tmp_path, shards):
    data = "train_size: 16, eval_size: 16, eval_resize: 18"
    recipe = TINY_RECIPE.replace(data, f"{data}, final_size: 32, growth: [0, 1]")
    run = make_run(tmp_path, shards, recipe=recipe)
    save_checkpoint(run, 24, 0.5, is_best=True)
    export(run.path, tmp_path / "out")
    stats = json.loads((tmp_path / "out" / "model_stats.json").read_text())
    model = table_of(tmp_path / "out", "Model")
    assert model["parameters"] == f"{stats['parameters']:,}"
    assert float(model["GMACs, image of 16 px"]) == pytest.approx(stats["gmacs"], rel=5e-3)
    assert model["training images, px"] == "16, growing to 32"
    assert model["test images, px"] == "16, cropped from 18"
    assert model["license"] == "apache-2.0"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("tiny", "tiny"), ("imagenet1k", "imagenet1k (not shown to be ImageNet-1k)")],
)
def test_the_card_has_the_accuracy_of_the_models_for_browsers(
    run, shards, tmp_path, monkeypatch, name, shown
):
    models = {
        "fp32": {"file": "model.onnx", "bytes": 4321, "top1": 0.5, "same_top1": 1.0},
        "int8": {"file": "model_quantized.onnx", "bytes": 1234, "top1": 0.375, "same_top1": 0.9},
    }
    measured = {"num_images": 11, "dataset": {"name": name}, "models": models}

    def write(model, folder, shards, data):
        (folder / "onnx").mkdir()
        (folder / "onnx" / "metrics.json").write_text(json.dumps(measured))

    monkeypatch.setattr(export_module, "write_web_models", write)  # which takes minutes
    monkeypatch.setattr(export_module, "require_web_models", lambda folder: None)
    out = tmp_path / "out"
    export(run.path, out, options=ExportOptions(shards=LocalShards(shards), web=True))
    text = visible((out / "README.md").read_text(encoding="utf-8"))
    assert f"on the 11 validation images of {shown} (onnx/metrics.json)" in text
    assert "| model.onnx | 4,321 | 50.00% | 100.00% | onnx/metrics.json |\n" in text
    assert "| model_quantized.onnx | 1,234 | 37.50% | 90.00% | onnx/metrics.json |\n" in text
    models["int8"]["top1"] = 0.376
    (out / "onnx" / "metrics.json").write_text(json.dumps(measured))
    [problem] = unsourced_numbers(out)
    assert "models.int8.top1 = 0.376" in problem


@pytest.mark.parametrize(
    ("name", "base"), [("user/name-2024@main", "user/name-2024"), ("resnet50-0676ba61.pth", None)]
)
def test_a_fine_tuned_model_names_its_base(tmp_path, shards, name, base):
    origin = {"name": name, "sha256": "0676ba61" * 8, "classifier": "new"}
    run = make_run(tmp_path, shards, init_from=origin)
    save_checkpoint(run, 24, 0.5, is_best=True)
    export(run.path, tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.base_model == base
    model = table_of(tmp_path / "out", "Model")
    assert model["fine-tuned from"] == name
    assert model["license"] == "that of the original weights"
    assert unsourced_numbers(tmp_path / "out") == []


@pytest.mark.parametrize("num_classes", [20, 21])
def test_few_classes_are_named_whatever_their_names_contain(tmp_path, shards, num_classes):
    names = ["5 | *a* <b> [c] `d` 6%", *(f"kind {index}" for index in range(1, num_classes))]
    wnids = [f"n{index:08d}" for index in range(num_classes)]
    run = make_run(tmp_path, shards, classes=Classes(tuple(wnids), tuple(names)))
    save_checkpoint(run, 24, 0.5, is_best=True)
    export(run.path, tmp_path / "out")
    text = visible((tmp_path / "out" / "README.md").read_text(encoding="utf-8"))
    named = r"5 \| \*a\* \<b\> \[c\] \`d\` 6%, kind 1, kind 2,"
    assert (f"Classes (`config.json`): {named}" in text) == (num_classes == 20)
    assert unsourced_numbers(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("zero, 0", "one, 1, ace", "two, deuce"), "zero, one, two."),
        (("crane, bird", "crane, machine", "two"), "crane, bird; crane, machine; two."),
    ],
)
def test_of_synonyms_the_first_stands_for_the_class_if_that_is_clear(
    tmp_path, shards, names, shown
):
    run = make_run(tmp_path, shards, classes=Classes(CLASSES.wnids, names))
    save_checkpoint(run, 24, 0.5, is_best=True)
    export(run.path, tmp_path / "out")
    text = visible((tmp_path / "out" / "README.md").read_text(encoding="utf-8"))
    assert f"Classes (`config.json`): {shown}" in text
    assert unsourced_numbers(tmp_path / "out") == []


def test_the_recipe_is_folded_and_the_citation_names_the_model(imagenet_export, run, tmp_path):
    text = (imagenet_export / "README.md").read_text(encoding="utf-8")
    _, folded = text.split("<details>", 1)
    assert "```yaml\nepochs: 2" in folded.split("</details>")[0]
    bibtex = text.split("```bibtex\n", 1)[1]
    keys = re.findall(r"^@\w+\{(\w+),", bibtex, re.M)
    assert keys == ["model", "he2016deep", "russakovsky2015imagenet"]
    assert "title = {50}" in bibtex
    export(run.path, tmp_path / "out")  # not of ImageNet
    assert "russakovsky" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_synced_dashboard_is_linked(tmp_path, shards):
    run = make_run(tmp_path, shards, trackio_space="user/runs-2")
    save_checkpoint(run, 24, 0.5, is_best=True)
    export(run.path, tmp_path / "out")
    text = visible((tmp_path / "out" / "README.md").read_text(encoding="utf-8"))
    link = "[user/runs-2](https://huggingface.co/spaces/user/runs-2) (metrics.jsonl line 1)"
    assert link in text
    assert unsourced_numbers(tmp_path / "out") == []
