"""The page with a stand-in for the model, and with a real one of digits."""

import json
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import expect

from imagenet_rn50.model import build_processor
from imagenet_rn50.publishing.web import download_runtime, stage_web_space, web_server
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.tools.digits import write_ilsvrc
from tests.browser import DESKTOP, new_page

ROOT = Path(__file__).parents[2]

# Names that need escaping, and two classes whose first names are the same.
LABELS = ("tabby, tabby cat", "<b>bold</b>", "crane, a bird", "crane, a machine", "ångström")


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """An exported folder whose ONNX models are no models: the page reads them late."""
    folder = tmp_path_factory.mktemp("stand-in") / "a model"
    (folder / "onnx").mkdir(parents=True)
    labels = {str(index): label for index, label in enumerate(LABELS)}
    config = {"architectures": ["ResNetForImageClassification"], "id2label": labels}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    build_processor(DataRecipe()).save_pretrained(folder)
    measured = {"sha256": "0" * 64, "top1": 0.76543, "same_top1": 0.99999, "logit_difference": 0.1}
    files = {"fp32": "model.onnx", "fp16": "model_fp16.onnx", "int8": "model_quantized.onnx"}
    models = {}
    for name, file in files.items():
        (folder / "onnx" / file).write_bytes(b"no model")
        models[name] = {"file": file, "bytes": 25_600_000, **measured}
    metrics = {"dataset": {"name": "imagenet1k", "split": "validation"}, "num_images": 50000}
    metrics["models"] = models
    (folder / "onnx" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Shards of digits, and a model of them exported with --web, by the commands of the guide."""
    folder = tmp_path_factory.mktemp("digits")
    write_ilsvrc(folder / "source")
    for words in (
        "shard_imagenet.py pack --source source --out shards --dataset digits --train-shards 4",
        "train_accelerate.py --recipe digits --shards shards --run run",
        "-m imagenet_rn50 export --run run --out export --shards shards --web --examples 0",
    ):
        program, *options = words.split()
        command = [ROOT / program, *options] if program.endswith(".py") else [program, *options]
        done = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    examples = folder / "export" / "examples"
    examples.mkdir()
    for number, path in enumerate(sorted((folder / "source").rglob("val/*.JPEG"))[:3]):
        shutil.copy(path, examples / f"{number} digit {number}.jpg")
    return folder


@contextmanager
def serving(folder, stage, runtime):
    """Serve the page of an exported folder; yields its address."""
    stage_web_space(folder, stage, runtime=runtime)
    with web_server(stage, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def stand_in_page(stand_in, tmp_path_factory):
    """The page without a usable model; needs no network."""
    runtime = tmp_path_factory.mktemp("runtime")
    (runtime / "ort.min.mjs").write_text("export const env = {wasm: {}};", encoding="utf-8")
    (runtime / "ort.wasm.gz").write_bytes(b"no program")
    with serving(stand_in, tmp_path_factory.mktemp("page"), runtime) as address:
        yield address


@pytest.fixture(scope="session")
def digits_page(digits, tmp_path_factory):
    """The page with the model of digits."""
    runtime = download_runtime(tmp_path_factory.mktemp("cache"))
    with serving(digits / "export", tmp_path_factory.mktemp("page"), runtime) as address:
        yield address


@contextmanager
def visit(browser, address, size=DESKTOP, scheme="light"):
    """Open the page; errors, uploads and requests to other hosts fail the test at the end."""
    with new_page(browser, size, scheme) as (page, requests, errors):
        page.on(
            "console",
            lambda message: errors.extend([message.text] if message.type == "error" else []),
        )
        page.goto(address)
        expect(page.get_by_role("heading", name="What is in this image?")).to_be_visible()
        expect(page.get_by_text("About this model")).to_be_visible()
        yield page
        found = [(request.method, request.url, request.post_data) for request in requests]
    for method, url, body in found:
        assert method == "GET", url
        assert body is None, url
        assert url.startswith((address, "data:", "blob:")), url
