"""Which model is evaluated, and what is said of one that cannot be."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor

from imagenet_rn50.classes import Classes
from imagenet_rn50.evaluation.datasets import ShardImages, open_images
from imagenet_rn50.evaluation.evaluate import evaluate
from imagenet_rn50.evaluation.load_model import check_classes, load_model
from imagenet_rn50.model import load_exported, weights_digest
from imagenet_rn50.pretrained import read_pretrained
from imagenet_rn50.publishing.export import convert
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.utils.errors import InputError
from tests.evaluation.models import (
    classes_of,
    export_model,
    label_shards,
    random_model,
    write_run,
)

NUM_CLASSES = 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return label_shards(tmp_path_factory.mktemp("shards"), [4], NUM_CLASSES)


@pytest.fixture
def model(tmp_path):
    export_model(tmp_path / "model", random_model(NUM_CLASSES))
    return tmp_path / "model"


def digest_of(seed):
    return weights_digest(random_model(NUM_CLASSES, seed=seed))


@pytest.mark.parametrize(
    ("ema", "which", "weights", "seed"),
    [
        (False, "best", "auto", 24),
        (False, "last", "auto", 48),
        (True, "best", "auto", 25),
        (True, "last", "ema", 49),
        (True, "last", "raw", 48),
    ],
)
def test_a_run_offers_best_and_last_raw_and_averaged(tmp_path, shards, ema, which, weights, seed):
    run = write_run(tmp_path / "run", shards, NUM_CLASSES, ema=ema)
    loaded = load_model(str(run), which, weights)
    assert weights_digest(loaded.network) == digest_of(seed)
    assert loaded.checkpoint == {
        "name": f"samples-{24 if which == 'best' else 48:09d}",
        "which": which,
        "weights": "ema" if seed % 2 else "raw",
        "samples_seen": 24 if which == "best" else 48,
        "is_best": which == "best",
        "weights_sha256": digest_of(seed),
    }


def test_a_run_without_averages_or_checkpoints_says_so(tmp_path, shards):
    run = write_run(tmp_path / "run", shards, NUM_CLASSES)
    with pytest.raises(InputError, match="holds no averaged weights"):
        load_model(str(run), weights="ema")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_model(str(run))


def test_a_damaged_checkpoint_is_refused_and_no_other_taken_instead(tmp_path, shards):
    run = write_run(tmp_path / "run", shards, NUM_CLASSES)
    weights = run / "checkpoints" / "samples-000000048" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"the last checkpoint, .*, is damaged"):
        load_model(str(run), "last")
    assert load_model(str(run), "best").checkpoint["samples_seen"] == 24


def test_a_checkpoint_and_its_export_have_the_same_digest_and_other_weights_another(model):
    network = random_model(NUM_CLASSES)
    assert load_model(str(model)).checkpoint == {"weights_sha256": weights_digest(network)}
    with torch.no_grad():
        network.classifier[1].bias[2] += 1e-6
    assert weights_digest(network) != digest_of(0)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_an_exported_folder_that_lacks_a_file_is_named_with_it(model, name):
    (model / name).unlink()
    with pytest.raises(InputError, match=f"found:    no {name}"):
        load_model(str(model))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_an_exported_folder_with_a_damaged_file_cannot_be_loaded(model, name):
    content = (model / name).read_bytes()
    (model / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(str(model))


def test_weights_of_half_precision_are_evaluated_in_full(model, shards):
    export_model(model, random_model(NUM_CLASSES).half())
    loaded, images = load_model(str(model)), ShardImages(LocalShards(shards), "validation")
    assert {tensor.dtype for tensor in loaded.network.parameters()} == {torch.float32}
    assert evaluate(loaded, images).results[0].num_images == 4


HOSTILE = """
from pathlib import Path
Path({trace!r}).touch()
from transformers import BitImageProcessor, ResNetConfig
class Config(ResNetConfig): model_type = "theirs"
class Processor(BitImageProcessor): pass
"""


@pytest.mark.parametrize(
    ("file", "kind", "classes"),
    [
        ("config.json", "model_type", {"AutoConfig": "Config"}),
        ("preprocessor_config.json", "image_processor_type", {"AutoImageProcessor": "Processor"}),
    ],
)
def test_python_beside_a_model_is_not_run_whatever_the_terminal_answers(
    model, tmp_path, monkeypatch, file, kind, classes
):
    trace = tmp_path / "trace"
    (model / "theirs.py").write_text(HOSTILE.format(trace=str(trace)), encoding="utf-8")
    content = json.loads((model / file).read_text())
    content |= {kind: "theirs", "auto_map": {k: f"theirs.{v}" for k, v in classes.items()}}
    (model / file).write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda question: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(str(model))
    with pytest.raises((InputError, ValueError)):
        load_exported(model) if file == "config.json" else convert(str(model), tmp_path / "out")
    assert not trace.exists()
    loader = AutoConfig if file == "config.json" else AutoImageProcessor
    loader.from_pretrained(model, trust_remote_code=True)
    assert trace.exists()  # the plant works, where somebody lets it


def test_a_configuration_of_other_sizes_than_the_weights_is_named_with_both(model):
    config = json.loads((model / "config.json").read_text())
    config["id2label"].pop("5")
    config["label2id"].pop("name5")
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"expected: .* of \(5,.*\n  found:    one of \(6,"
    ) as caught:
        load_model(str(model))
    assert "ignore_mismatched_sizes" not in str(caught.value)


def test_weights_that_do_not_fill_the_model_are_refused(model):
    state = load_file(model / "model.safetensors")
    state.pop("classifier.1.bias")
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"such as classifier\.1\.bias"):
        load_model(str(model))


@pytest.mark.parametrize("name", ["nothing", "no/such/folder/here", "tests/nothing", "a/b.pth"])
def test_a_model_that_is_nowhere_is_named_and_not_asked_of_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with pytest.raises(InputError, match="there is no model"):
        load_model(name)
    with pytest.raises(InputError, match="there are no weights"):
        read_pretrained(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no run"):
        load_model(str(tmp_path / "empty"))


def test_a_file_of_weights_or_another_format_says_what_to_do_with_it(model, tmp_path):
    with pytest.raises(InputError, match=r"fix: .* export --from .*model\.safetensors --out DIR"):
        load_model(str(model / "model.safetensors"))
    (model / "model.safetensors").rename(model / "resnet50.safetensors")
    with pytest.raises(
        InputError, match=r"no model\.safetensors, but resnet50\.safetensors\n"
    ) as c:
        load_model(str(model))
    assert "--format transformers" in str(c.value)


def test_a_run_whose_classes_are_of_another_number_is_refused(tmp_path, shards):
    run = write_run(tmp_path / "run", shards, NUM_CLASSES)
    classes_of(NUM_CLASSES - 1).save(run)
    with pytest.raises(InputError, match="does not fit the recipe and the classes beside it"):
        load_model(str(run))


def test_a_model_of_the_hub_is_loaded_from_its_cache(model, tmp_path, monkeypatch):
    hub = tmp_path / "hub" / "models--someone--some-model"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(model, hub / "snapshots" / commit)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(commit, encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("someone/some-model", f"someone/some-model@{commit}"):
        expected = {"hub_commit": commit, "weights_sha256": digest_of(0)}
        assert load_model(name).checkpoint == expected
    with pytest.raises(InputError, match="there is no folder someone/nothing, and the model"):
        load_model("someone/nothing")


def test_a_model_of_another_number_of_classes_is_refused(shards, tmp_path):
    export_model(tmp_path / "other", random_model(NUM_CLASSES + 1))
    loaded = load_model(str(tmp_path / "other"))
    with pytest.raises(InputError, match="expected: a model of 6 classes") as caught:
        open_images(loaded, str(shards), None)
    assert "found:    one of 7" in str(caught.value)


def test_a_model_whose_labels_are_in_another_order_is_refused(model, shards):
    config = json.loads((model / "config.json").read_text())
    names = config["id2label"]
    names["1"], names["4"] = names["4"], names["1"]
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match="or not in their order") as caught:
        open_images(load_model(str(model)), str(shards), None)
    assert "expected: class 1 to be n00000010 'name1'" in str(caught.value)


KAGGLE = Classes(("n01440764", "n02012849", "n03126707"), ("tench, Tinca tinca", "crane", "crane"))


@pytest.mark.parametrize(
    "labels",
    [
        KAGGLE.labels,
        ("tench", "crane bird", "crane"),  # torchvision's
        ("tench, Tinca tinca", "crane", "crane, machine"),
        KAGGLE.wnids,
        ("LABEL_0", "LABEL_1", "LABEL_2"),
    ],
)
def test_labels_may_be_worded_differently(labels):
    check_classes("model", labels, "shards", KAGGLE)


@pytest.mark.parametrize("labels", [("cat", "dog", "bird"), ("crane", "tench", "x")])
def test_labels_of_other_classes_are_refused(labels):
    with pytest.raises(InputError, match="are not those of shards"):
        check_classes("model", labels, "shards", KAGGLE)


def test_shards_without_names_take_any_model():
    nameless = Classes(KAGGLE.wnids, KAGGLE.wnids)
    check_classes("model", ("tench", "crane", "crane"), "shards", nameless)
    check_classes("model", nameless.wnids, "shards", nameless)
    with pytest.raises(InputError, match="are not those of"):
        check_classes("model", nameless.wnids[::-1], "shards", nameless)


@pytest.mark.parametrize(
    "settings", [{"resample": 3}, {"crop_size": {"height": 20, "width": 20}}], ids=str
)
def test_a_processor_that_training_cannot_imitate_is_used_alone(model, shards, settings):
    path = model / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings), encoding="utf-8")
    loaded, images = load_model(str(model)), ShardImages(LocalShards(shards), "validation")
    rows = evaluate(loaded, images).results
    assert [row.transform for row in rows] == ["processor"]
    with pytest.raises(InputError, match="--transform processor"):
        evaluate(loaded, images, transform="training")


def test_the_classes_beside_an_exported_model_are_found(model):
    assert load_model(str(model)).classes is None
    classes_of(NUM_CLASSES).save(model)
    assert load_model(str(model)).classes == classes_of(NUM_CLASSES)


@pytest.mark.parametrize(("which", "weights"), [("last", "auto"), ("best", "raw")])
def test_an_exported_folder_offers_no_choice_of_weights(model, which, weights):
    with pytest.raises(InputError, match="--weights"):
        load_model(str(model), which, weights)
