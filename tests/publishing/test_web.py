"""Models for browsers, and pushing the page, without a browser."""

import http.server
import json
import threading
from contextlib import contextmanager
from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch

from imagenet_rn50.model import load_exported, logits_of
from imagenet_rn50.publishing.export import ExportOptions, export
from imagenet_rn50.publishing.hub import Target, push
from imagenet_rn50.publishing.web import WEB, download_runtime, stage_web_space
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.utils.errors import InputError
from tests.hub import TOKEN, serving_hub, use_hub
from tests.publishing.runs import make_run, save_checkpoint

FILES = ("model.onnx", "model_fp16.onnx", "model_quantized.onnx")


@pytest.fixture(scope="module")
def web_export(tmp_path_factory, shards):
    folder = tmp_path_factory.mktemp("web")
    run = make_run(folder, shards)
    save_checkpoint(run, 24, 0.5, is_best=True)
    export(run.path, folder / "out", options=ExportOptions(shards=LocalShards(shards), web=True))
    return folder / "out"


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns of itself
def test_each_model_computes_nearly_the_same_and_its_maps_add_up_to_the_logits(web_export):
    pixels = torch.randn(3, 3, 16, 16)
    model = load_exported(web_export)
    with torch.inference_mode():
        expected = logits_of(model, pixels).numpy()
    bias = model.get_parameter("classifier.1.bias").detach().numpy()
    for file, allowed in zip(FILES, (1e-4, 1e-2, 0.2), strict=True):
        session = onnxruntime.InferenceSession(web_export / "onnx" / file)
        feed = {"pixel_values": pixels.numpy()}
        logits, maps = session.run(["logits", "class_maps"], feed)
        assert np.abs(logits - expected).max() < allowed * np.abs(expected).max(), file
        np.testing.assert_allclose(maps.mean((2, 3)) + bias, logits, atol=1e-2, err_msg=file)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sizes_and_accuracy_of_the_models_are_measured(web_export, shards):
    metrics = json.loads((web_export / "onnx" / "metrics.json").read_text())
    dataset = {"name": "tiny", "split": "validation", "is_imagenet1k": False}
    assert metrics["dataset"] == dataset | {"fingerprint": Manifest.fingerprint_of(shards)}
    assert metrics["num_images"] == 11
    assert metrics["calibration"] == {"split": "train", "num_images": 4}
    assert [model["file"] for model in metrics["models"].values()] == list(FILES)
    for model in metrics["models"].values():
        assert model["bytes"] == (web_export / "onnx" / model["file"]).stat().st_size
        assert 0 <= model["top1"] <= 1
        assert f"| {model['file']}<!--" in (web_export / "README.md").read_text(encoding="utf-8")
    assert metrics["models"]["fp32"]["same_top1"] == 1


def test_models_for_browsers_need_shards_and_float32(tmp_path, shards):
    run = make_run(tmp_path, shards)
    save_checkpoint(run, 24, 0.5, is_best=True)
    with pytest.raises(InputError, match="--web needs shards"):
        export(run.path, tmp_path / "out", options=ExportOptions(web=True))
    options = ExportOptions(web=True, dtype="float16", shards=LocalShards(shards))
    with pytest.raises(InputError, match="expected: --dtype float32"):
        export(run.path, tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def exported(tmp_path, shards):
    """An export, to which files are added that only look like models for browsers."""
    run = make_run(tmp_path, shards)
    save_checkpoint(run, 24, 0.5, is_best=True)
    export(run.path, tmp_path / "out")
    (tmp_path / "out" / "onnx").mkdir()
    measured = {"bytes": 8, "sha256": "0" * 64, "top1": 0.5, "same_top1": 1.0}
    names = dict(zip(("fp32", "fp16", "int8"), FILES, strict=True))
    for file in FILES:
        (tmp_path / "out" / "onnx" / file).write_bytes(b"no model")
    models = {name: {"file": file, **measured} for name, file in names.items()}
    metrics = {"dataset": {"name": "tiny", "split": "validation"}, "num_images": 11}
    text = json.dumps(metrics | {"models": models})
    (tmp_path / "out" / "onnx" / "metrics.json").write_text(text)
    return tmp_path / "out"


def test_a_push_of_the_page_needs_models_for_browsers_and_lists_its_files(exported, capsys):
    target = Target("user/model", web_space="user/web")
    push(exported, target, dry_run=True)
    listed = capsys.readouterr().out
    assert "spaces/user/web" in listed
    for name in ("index.html", "model.json", "onnx/model_quantized.onnx", "sw.js"):
        assert f" {name}\n" in listed
    (exported / "onnx" / "model_fp16.onnx").unlink()
    with pytest.raises(InputError, match=r"found:    no onnx/model_fp16\.onnx\n"):
        push(exported, target, dry_run=True)
    with pytest.raises(InputError, match="is not a Hub id"):
        push(exported, Target("user/model", web_space="web"), dry_run=True)


@pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub's
def test_the_page_arrives_whole_and_a_later_push_removes_what_it_lacks(
    exported, tmp_path, monkeypatch, capsys
):
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    for name in ("ort.min.mjs", "ort.wasm.gz"):
        (runtime / name).write_bytes(b"a program")
    (exported / "examples").mkdir()
    (exported / "examples" / "1 one.jpg").write_bytes(b"a digit")
    monkeypatch.setattr("imagenet_rn50.publishing.hub.download_runtime", lambda: runtime)
    with serving_hub() as hub:
        use_hub(hub, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        push(exported, Target("user/model", web_space="user/web"))
        revision, _ = hub.repos["models/user/model"].at("main")
        _, files = hub.repos["spaces/user/web"].at("main")
        assert hub.repos["spaces/user/web"].created["sdk"] == "static"
        for name in ("index.html", "app.js", "onnx/model_fp16.onnx", "examples/1 one.jpg"):
            source = (exported if "/" in name else WEB) / name
            assert files[name] == source.read_bytes(), name
        assert {"ort/ort.min.mjs", "ort/ort.wasm.gz", "ort/LICENSE"} <= set(files)
        assert json.loads(files["model.json"])["url"].endswith(f"user/model/tree/{revision}")
        (exported / "examples" / "1 one.jpg").rename(exported / "examples" / "1 two.jpg")
        push(exported, Target("user/model", web_space="user/web"))
        _, files = hub.repos["spaces/user/web"].at("main")
        assert [name for name in files if name.startswith("examples/")] == ["examples/1 two.jpg"]
    assert TOKEN not in capsys.readouterr().out


def test_the_page_names_its_model_and_says_how_images_are_prepared(exported, tmp_path):
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    (runtime / "ort.wasm.gz").write_bytes(b"a program")
    stage = tmp_path / "stage"
    stage_web_space(exported, stage, runtime=runtime, hub_id="user/model", revision="f" * 40)
    card = (stage / "README.md").read_text(encoding="utf-8")
    assert "\nsdk: static\n" in card
    assert "\nmodels:\n- user/model\n" in card
    content = json.loads((stage / "model.json").read_text(encoding="utf-8"))
    assert content["url"] == f"https://huggingface.co/user/model/tree/{'f' * 40}"
    assert content["labels"] == ["first", "second", "third"]
    crop = {"height": 16, "width": 16}
    prepared = {"resize": 18, "crop": crop, "resample": "bilinear"}
    assert prepared.items() <= content["preprocessing"].items()
    assert content["runtime"]["bytes"] == len(b"a program")
    assert not (stage / "onnx" / "model.onnx").exists()  # of float32, which no visitor downloads


def test_a_model_of_a_thousand_classes_without_examples_gets_photos(exported, tmp_path):
    def examples(num_classes):
        path = exported / "config.json"
        labels = {str(index): f"class {index}" for index in range(num_classes)}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": labels}))
        stage_web_space(exported, tmp_path / "stage", runtime=None)
        content = json.loads((tmp_path / "stage" / "model.json").read_text(encoding="utf-8"))
        return [each["name"] for each in content["examples"]]

    assert examples(999) == []
    assert "cat" in examples(1000)
    (exported / "examples").mkdir()
    (exported / "examples" / "2 of its own.png").write_bytes(b"an image")
    assert examples(1000) == ["of its own"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"resample": 1}, "resample"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"size": {"height": 8, "width": 8}}, "size"),
        ({"crop_size": {"height": 40, "width": 40}}, "crop"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
    ],
)
def test_preprocessing_that_the_page_does_not_know_is_refused(exported, tmp_path, changes, named):
    path = exported / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=named):
        stage_web_space(exported, tmp_path / "stage", runtime=None)


@contextmanager
def registry(folder):
    """A npm registry on loopback that serves a folder."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_runtime_with_another_hash_is_refused_and_nothing_is_kept(tmp_path, monkeypatch):
    name = "onnxruntime-web/-/onnxruntime-web-1.30.0.tgz"
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(b"another package")
    monkeypatch.setattr("imagenet_rn50.utils.storage.time.sleep", lambda seconds: None)
    with registry(tmp_path) as address:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", address)
        with pytest.raises(InputError, match="sha256"):
            download_runtime(tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("ort*"))
