"""The model that is served: the one chosen, equal to transformers' pipeline, or refused."""

import json
import shutil
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, pipeline

from space.heatmap import grad_cam, paint
from space.model import Classifier, ModelError, ModelId, find_folder
from space.pictures import open_picture
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


def assert_equal_guesses(guesses, expected):
    assert [guess.label for guess in guesses] == [answer["label"] for answer in expected]
    scores = [answer["score"] for answer in expected]
    assert [guess.score for guess in guesses] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK"])
@pytest.mark.parametrize("size", [(18, 18), (1, 1), (640, 480), (31, 200), (3, 90), (2000, 41)])
def test_guesses_equal_the_pipelines(classifier, reference, tmp_path, mode, size):
    path = tmp_path / "picture.tiff"
    noise(size, seed=size[0]).convert(mode).save(path)
    guesses = classifier.guess(open_picture(path))
    assert_equal_guesses(guesses, reference(str(path), top_k=5))
    assert [guess.score for guess in guesses] == sorted((g.score for g in guesses), reverse=True)


@pytest.mark.parametrize("mode", ["RGBA", "I;16", "F"])
def test_of_what_the_pipeline_sees_otherwise_the_visible_picture_counts(
    classifier, reference, tmp_path, mode
):
    path = tmp_path / "picture.tiff"
    noise((50, 40)).convert(mode).save(path)
    picture = open_picture(path)
    assert_equal_guesses(classifier.guess(picture), reference(picture, top_k=5))


def test_the_heat_map_is_grad_cam(classifier, model_folder):
    """Behind average pooling and one linear layer, the gradient is that layer's weights."""
    model = AutoModelForImageClassification.from_pretrained(model_folder).eval()
    pixels = classifier.pixels(noise((64, 64)))
    with torch.no_grad():
        features = model.resnet(pixels).last_hidden_state[0]  # (C, h, w)
    for index in range(len(NAMES)):
        weights = model.classifier[1].weight[index].detach()
        expected = (weights[:, None, None] * features).sum(0).relu()
        heat = grad_cam(model, pixels, index)
        assert heat is not None
        torch.testing.assert_close(heat, expected / expected.max().clamp_min(1e-12))


def test_a_heat_map_is_clear_where_it_is_cold_and_bright_where_it_is_hot():
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


def test_what_the_model_saw_is_the_middle_of_the_picture(classifier):
    picture = Image.new("RGB", (90, 30), "white")
    picture.paste((0, 128, 0), (30, 0, 60, 30))
    colours = classifier.seen(picture).getcolors()
    assert [colour for _, colour in colours] == [(0, 128, 0)]


def test_the_environment_chooses_the_model_before_the_pushed_file(tmp_path):
    pushed = tmp_path / "model.json"
    pushed.write_text(json.dumps({"model_id": "owner/pushed", "revision": "abc"}))
    assert ModelId.chosen({}, pushed) == ModelId("owner/pushed", "abc")
    assert ModelId.chosen({"MODEL_ID": "owner/other"}, pushed) == ModelId("owner/other")
    chosen = ModelId.chosen({"MODEL_ID": "owner/other", "MODEL_REVISION": "v2"}, pushed)
    assert chosen == ModelId("owner/other", "v2")


@pytest.mark.parametrize("text", [None, "", "[]", "{}", "{", '"owner/name"'])
def test_no_choice_is_said_to_be_none(tmp_path, text):
    pushed = tmp_path / "model.json"
    if text is not None:
        pushed.write_text(text)
    with pytest.raises(ModelError, match=r"No model is chosen|model\.json cannot be read"):
        ModelId.chosen({"MODEL_ID": " "}, pushed)


def test_visitors_are_not_told_where_a_folder_stands(model_folder):
    assert ModelId(str(model_folder)).title == model_folder.name
    assert ModelId("owner/name", "v2").title == "owner/name at v2"


@pytest.mark.parametrize("name", ["no/such folder", "./absent", "a/b/c/d", "owner/absent"])
def test_an_unknown_model_is_a_model_error(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="neither a folder here nor a model"):
        find_folder(ModelId(name, "v1"))


def test_a_model_is_fetched_at_its_revision_and_without_pickles(model_folder, monkeypatch):
    files = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "README.md"]
    pickles = ["pytorch_model.bin", "model.pkl", "modeling_mine.py", "training_args.bin"]

    def download(name, *, revision, allow_patterns):
        assert (name, revision) == ("owner/name", "v2")
        fetched = [
            file
            for file in files + pickles
            if any(fnmatch(file, pattern) for pattern in allow_patterns)
        ]
        assert fetched == files
        return str(model_folder)

    monkeypatch.setattr("space.model.snapshot_download", download)
    assert find_folder(ModelId("owner/name", "v2")) == model_folder


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def pickle_the_weights(folder):
    weights = load_file(folder / "model.safetensors")
    remove_weights(folder)
    torch.save(weights, folder / "pytorch_model.bin")


def cut_the_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def lose_a_layer(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def scribble_into_the_config(folder):
    (folder / "config.json").write_text("{")


def ask_for_remote_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('remote code ran')")


def remove_the_processor(folder):
    (folder / "preprocessor_config.json").unlink()


@pytest.mark.filterwarnings("ignore")  # transformers warns as it fails
@pytest.mark.parametrize(
    "harm",
    [
        remove_weights,
        pickle_the_weights,
        cut_the_weights,
        lose_a_layer,
        scribble_into_the_config,
        ask_for_remote_code,
        remove_the_processor,
    ],
)
def test_a_broken_folder_is_a_model_error(model_folder, tmp_path, harm):
    folder = tmp_path / "broken"
    shutil.copytree(model_folder, folder)
    harm(folder)
    with pytest.raises(ModelError, match="cannot be loaded"):
        Classifier(folder)
