"""The served model: which one is chosen, that it equals transformers' pipeline, and errors."""

import json
import math
import shutil
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, pipeline

from space.calibration import Calibration
from space.heatmap import grad_cam, paint
from space.images import open_image
from space.model import (
    MAX_MODELS,
    Classifier,
    ModelError,
    ModelId,
    find_folder,
    first_synonyms,
    models_from_settings,
    titles_of,
)
from tests.app.conftest import NAMES

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def classifier(model_folder):
    return Classifier(model_folder)


@pytest.fixture(scope="module")
def reference(model_folder):
    return pipeline("image-classification", str(model_folder))


def noise(size, seed=0):
    rough = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)


def assert_equal_predictions(predictions, expected):
    assert [prediction.label for prediction in predictions] == [
        answer["label"] for answer in expected
    ]
    scores = [answer["score"] for answer in expected]
    assert [prediction.score for prediction in predictions] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK"])
@pytest.mark.parametrize("size", [(18, 18), (1, 1), (640, 480), (31, 200), (3, 90), (2000, 41)])
def test_predictions_equal_those_of_the_pipeline(classifier, reference, tmp_path, mode, size):
    path = tmp_path / "image.tiff"
    noise(size, seed=size[0]).convert(mode).save(path)
    predictions = classifier.predict(open_image(path))
    assert_equal_predictions(predictions, reference(str(path), top_k=5))
    assert [prediction.score for prediction in predictions] == sorted(
        (g.score for g in predictions), reverse=True
    )


@pytest.mark.parametrize("mode", ["RGBA", "I;16", "F"])
def test_modes_that_the_pipeline_misreads_are_classified_as_displayed(
    classifier, reference, tmp_path, mode
):
    path = tmp_path / "image.tiff"
    noise((50, 40)).convert(mode).save(path)
    image = open_image(path)
    assert_equal_predictions(classifier.predict(image), reference(image, top_k=5))


def test_the_heat_map_is_grad_cam(model_folder):
    """After average pooling and one linear layer, the gradient is the weights of that layer."""
    model = AutoModelForImageClassification.from_pretrained(model_folder).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.resnet(pixels).last_hidden_state[0]  # (C, 8, 8)
    for index in range(len(NAMES)):
        weights = model.classifier[1].weight[index].detach()
        expected = (weights[:, None, None] * features).sum(0).relu()
        expected -= expected.min()
        heat = grad_cam(model, pixels, index)
        assert heat is not None
        torch.testing.assert_close(heat, expected / expected.max().clamp_min(1e-12))


@pytest.mark.parametrize(("side", "map_side"), [(16, 4), (32, 8), (64, 8), (96, 12)])
def test_a_heat_map_is_of_the_last_stage_that_is_fine_enough(model_folder, side, map_side):
    """The two stages have maps of a quarter and of an eighth of the image's side."""
    model = AutoModelForImageClassification.from_pretrained(model_folder).eval()
    heat = grad_cam(model, torch.randn(1, 3, side, side), 0)
    assert heat is not None
    assert heat.shape == (map_side, map_side)
    assert heat.min() == 0


def test_a_heat_map_is_transparent_at_0_and_bright_at_1():
    heat = torch.zeros(4, 4)
    heat[0, 0] = 1
    painted = paint(heat, (32, 32))
    assert np.asarray(painted)[-1, -1, 3] == 0
    assert painted.getpixel((0, 0)) == (252, 255, 164, 255)


def test_a_model_without_a_feature_map_has_no_heat_map():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=16,
    )
    model = ViTForImageClassification(config).eval()
    assert grad_cam(model, torch.zeros(1, 3, 16, 16), 0) is None


def test_the_visible_crop_is_the_center_of_the_image(classifier):
    image = Image.new("RGB", (90, 30), "white")
    image.paste((0, 128, 0), (30, 0, 60, 30))
    colours = classifier.visible_crop(classifier.pixels(image)).getcolors()
    assert [colour for _, colour in colours] == [(0, 128, 0)]


def test_environment_variables_take_precedence_over_model_json(tmp_path):
    model_json = tmp_path / "model.json"
    model_json.write_text(json.dumps({"model_id": "owner/from-file", "revision": "abc"}))
    assert models_from_settings({}, model_json) == [ModelId("owner/from-file", "abc")]
    other = {"MODEL_ID": "owner/other"}
    assert models_from_settings(other, model_json) == [ModelId("owner/other")]
    pinned = other | {"MODEL_REVISION": "v2"}
    assert models_from_settings(pinned, model_json) == [ModelId("owner/other", "v2")]


@pytest.mark.parametrize(
    ("revisions", "expected"),
    [("", (None, None)), ("v1, v2", ("v1", "v2")), (",v2", (None, "v2"))],
)
def test_several_models_are_listed_with_commas(tmp_path, revisions, expected):
    settings = {"MODEL_ID": " a/b, c/d,", "MODEL_REVISION": revisions}
    models = models_from_settings(settings, tmp_path / "model.json")
    assert [model.name for model in models] == ["a/b", "c/d"]
    assert tuple(model.revision for model in models) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"MODEL_ID": ",".join(["a/b"] * (MAX_MODELS + 1))},
        {"MODEL_ID": ","},
        {"MODEL_ID": "a/b,c/d", "MODEL_REVISION": "v1"},
        {"MODEL_ID": "a/b", "MODEL_REVISION": "v1,v2"},
    ],
)
def test_a_wrong_number_of_models_or_revisions_is_a_model_error(tmp_path, settings):
    with pytest.raises(ModelError, match=r"MODEL_ID|MODEL_REVISION"):
        models_from_settings(settings, tmp_path / "model.json")


def test_a_folder_with_a_comma_in_its_name_is_one_model(tmp_path):
    folder = tmp_path / "mine, all mine"
    folder.mkdir()
    models = models_from_settings({"MODEL_ID": str(folder)}, tmp_path / "model.json")
    assert models == [ModelId(str(folder))]


def test_models_of_the_same_name_are_numbered():
    models = [ModelId("a/b"), ModelId("c/d"), ModelId("a/b")]
    assert titles_of(models) == ["a/b (1)", "c/d", "a/b (2)"]


def test_a_class_is_called_by_its_first_synonym_unless_another_class_has_it():
    labels = ["tench, Tinca tinca", "crane", "crane, bird", "", ", odd"]
    assert first_synonyms(labels) == ["tench", "crane", "crane, bird", "", ", odd"]


def write_calibration(folder, **content):
    values = {
        "score": "log-odds of the maximum softmax",
        "temperature": 2,
        "false_alarm_rate": 0.05,
        "num_images": 20,
    } | content
    (folder / "calibration.json").write_text(json.dumps(values), encoding="utf-8")


def test_an_image_is_unfamiliar_if_its_score_is_at_most_the_threshold(model_folder, tmp_path):
    folder = tmp_path / "calibrated"
    shutil.copytree(model_folder, folder)
    image = noise((64, 64))
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(Classifier(folder).pixels(image)).logits[0]
    probability = (logits / 2).double().softmax(0).max().item()
    score = math.log(probability / (1 - probability))
    for threshold, expected in ((score - 1e-3, False), (score + 1e-3, True)):
        write_calibration(folder, threshold=threshold)
        classifier = Classifier(folder)
        assert classifier.answer(classifier.pixels(image)).is_unfamiliar is expected


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"score": "log-odds of the maximum softmax"}', '{"score": "?"}']
)
def test_a_model_without_a_usable_calibration_makes_no_claim(tmp_path, content):
    if content is not None:
        (tmp_path / "calibration.json").write_text(content, encoding="utf-8")
    assert Calibration.read(tmp_path) is None


@pytest.mark.parametrize("text", [None, "", "[]", "{}", "{", '"owner/name"'])
def test_a_missing_or_invalid_model_json_is_a_model_error(tmp_path, text):
    model_json = tmp_path / "model.json"
    if text is not None:
        model_json.write_text(text)
    with pytest.raises(ModelError, match=r"model\.json"):
        models_from_settings({"MODEL_ID": " "}, model_json)


def test_the_title_of_a_local_model_hides_its_path(model_folder):
    assert ModelId(str(model_folder)).title == model_folder.name
    assert ModelId("owner/name", "v2").title == "owner/name at v2"


@pytest.mark.parametrize("name", ["no/such folder", "./absent", "a/b/c/d", "owner/absent"])
def test_an_unknown_model_is_a_model_error(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=name):
        find_folder(ModelId(name, "v1"))


def test_a_model_is_downloaded_at_its_revision_and_without_pickles(model_folder, monkeypatch):
    files = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "README.md"]
    files += ["calibration.json", "plots/loss.png", "examples/1 tench.jpg"]
    pickles = ["pytorch_model.bin", "model.pkl", "modeling_mine.py", "training_args.bin"]

    def download(name, *, revision, allow_patterns):
        assert (name, revision) == ("owner/name", "v2")
        downloaded = [
            file
            for file in files + pickles
            if any(fnmatch(file, pattern) for pattern in allow_patterns)
        ]
        assert downloaded == files
        return str(model_folder)

    monkeypatch.setattr("space.model.snapshot_download", download)
    assert find_folder(ModelId("owner/name", "v2")) == model_folder


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def pickle_the_weights(folder):
    weights = load_file(folder / "model.safetensors")
    remove_weights(folder)
    torch.save(weights, folder / "pytorch_model.bin")


def truncate_the_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def remove_a_layer(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def corrupt_the_config(folder):
    (folder / "config.json").write_text("{")


def require_remote_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('remote code ran')")


def remove_the_processor(folder):
    (folder / "preprocessor_config.json").unlink()


@pytest.mark.filterwarnings("ignore")  # transformers warns before it fails
@pytest.mark.parametrize(
    "damage",
    [
        remove_weights,
        pickle_the_weights,
        truncate_the_weights,
        remove_a_layer,
        corrupt_the_config,
        require_remote_code,
        remove_the_processor,
    ],
)
def test_a_broken_folder_is_a_model_error(model_folder, tmp_path, damage):
    folder = tmp_path / "broken"
    shutil.copytree(model_folder, folder)
    damage(folder)
    with pytest.raises(ModelError, match="cannot be loaded"):
        Classifier(folder)
