"""examples/predict.py with valid, damaged and missing images and models."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from imagenet_rn50.model import build_labelled, build_processor
from imagenet_rn50.recipe import DataRecipe, ModelRecipe

SCRIPT = Path(__file__).parents[1] / "examples" / "predict.py"
TINY = ModelRecipe(embedding_size=8, hidden_sizes=(8,), depths=(1,), layer_type="basic")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    build_labelled(TINY, ["ant", "bee"]).eval().save_pretrained(folder / "model")
    build_processor(DataRecipe(eval_size=32, eval_resize=32)).save_pretrained(folder / "model")
    Image.new("RGB", (40, 50)).save(folder / "valid.jpg", quality=95)
    Image.new("LA", (40, 50)).save(folder / "grey with alpha.png")
    whole = (folder / "valid.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "broken.png").write_bytes((folder / "grey with alpha.png").read_bytes()[:40])
    (folder / "text.jpg").write_text("an image")
    (folder / "empty.jpg").touch()
    return folder


@pytest.fixture
def predict(monkeypatch, capfd, folder):
    """Run the script; return its exit code, output lines and error lines."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spec = importlib.util.spec_from_file_location("predict", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)  # keep pytest's handler

    def run(*names, model="model", options=()):
        arguments = [
            "--model",
            str(folder / model),
            *options,
            *(str(folder / name) for name in names),
        ]
        monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
        code = 0
        try:
            module.main()
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capfd.readouterr()
        return code, out.splitlines(), [line for line in err.splitlines() if "error: " in line]

    return run


def test_each_image_is_printed_on_its_own_line(predict):
    code, lines, errors = predict("valid.jpg", "grey with alpha.png")
    assert (code, errors) == (0, [])
    assert [line.partition(":")[0] for line in lines] == ["valid.jpg", "grey with alpha.png"]


@pytest.mark.parametrize(
    "name", ["missing.jpg", "model", "truncated.jpg", "broken.png", "text.jpg", "empty.jpg"]
)
def test_an_unreadable_image_is_an_error_and_the_others_are_classified(predict, name):
    code, lines, errors = predict(name, "valid.jpg")
    assert code == 2
    assert len(errors) == 1
    assert name in errors[0]
    assert [line.partition(":")[0] for line in lines] == ["valid.jpg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_an_image_without_read_permission_is_an_error(predict, folder, tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes((folder / "valid.jpg").read_bytes())
    secret.chmod(0)
    code, _, errors = predict(secret)
    assert (code, len(errors)) == (2, 1)


@pytest.mark.parametrize("model", ["nowhere", ".", "valid.jpg"])
def test_a_model_that_cannot_be_loaded_is_an_error(predict, folder, model):
    code, lines, errors = predict("valid.jpg", model=model)
    assert (code, lines) == (2, [])
    assert str(folder / model) in errors[0]


def test_top_below_one_is_an_error(predict):
    code, _, errors = predict("valid.jpg", options=["--top", "0"])
    assert code == 2
    assert "--top must be at least 1, got 0" in errors[0]
