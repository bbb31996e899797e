"""Use the Space through its API: gradio_client, concurrent clients and damaged files."""

import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gradio.route_utils import delete_files_created_by_app
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import pipeline

from space.images import open_image
from space.model import Classifier, ModelError, ModelId
from space.page import build_page, build_setup_page, launch
from tests.app.serving import APP, HTTP, function_of, run_function, serve

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.filterwarnings("ignore"),  # gradio_client leaks sockets and event loops
    pytest.mark.timeout(600),
]

NUM_CLIENTS = 50
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def client(space):
    return connect(space.address)


def connect(address):
    return Client(address, verbose=False, httpx_kwargs={"timeout": 300})  # CI machines may be busy


def predict(client, path):
    return client.predict(image=handle_file(path), api_name="/predict")


def assert_serves(client):
    assert len(predict(client, APP / "examples" / "cat.jpg")) == 5


def test_the_api_returns_what_the_pipeline_returns(client, model_folder):
    reference = pipeline("image-classification", str(model_folder))
    for path in sorted((APP / "examples").glob("*.jpg")):
        answers, expected = predict(client, path), reference(str(path), top_k=5)
        assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
        scores = [answer["score"] for answer in expected]
        assert [answer["score"] for answer in answers] == pytest.approx(scores, abs=1e-5)


def test_predict_is_the_only_public_endpoint(client):
    endpoints = client.view_api(return_format="dict")
    assert list(endpoints["named_endpoints"]) == ["/predict"]
    assert not endpoints["unnamed_endpoints"]


def test_the_api_documentation_asks_for_a_file_and_not_a_url(space):
    endpoint = HTTP.get(f"{space.address}/gradio_api/info").json()["named_endpoints"]["/predict"]
    image, model = endpoint["parameters"]
    assert model["parameter_name"] == "model"
    assert image["python_type"]["type"] == "filepath"
    assert "not a URL" in image["python_type"]["description"]
    assert "not URLs" in endpoint["description"]


def test_damaged_and_large_files_are_errors_and_the_space_keeps_serving(client, tmp_path):
    rng = random.Random(0)
    intact = (APP / "examples" / "cat.jpg").read_bytes()
    path = tmp_path / "damaged.jpg"
    for _ in range(8):
        path.write_bytes(intact[: rng.randrange(1, len(intact) - 2)])
        with pytest.raises(AppError, match=r"damaged|not a supported image"):
            predict(client, path)
    path.write_bytes(bytes(21 * 10**6))
    with pytest.raises(Exception, match="exceeds the maximum file size"):
        predict(client, path)
    assert_serves(client)


@pytest.mark.parametrize("path", ["/etc/hostname", "{log}", "http://outside.example/a.jpg"])
def test_local_files_and_urls_cannot_be_requested(client, space, path):
    """From any function, as a client that bypasses the page could try."""
    config = HTTP.get(f"{space.address}/config").json()
    types = {component["id"]: component["type"] for component in config["components"]}
    file = {"path": path.format(log=space.log), "meta": {"_type": "gradio.FileData"}}
    sent = {"image": file, "file": [file]}
    asked = []
    for function in config["dependencies"]:
        data = [sent.get(types[component]) for component in function["inputs"]]
        if any(data):
            asked += [types[component] for component in function["inputs"]]
            assert run_function(space.address, function["id"], data)["success"] is False
    assert set(asked) >= {"image", "file"}
    assert space.outside.read_text(encoding="utf-8") == ""
    assert_serves(client)


def test_fifty_concurrent_clients_get_predictions(client, space, tmp_path):
    """Memory grows by two decoded images, not by fifty."""
    path = tmp_path / "large.jpg"
    rough = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(rough).resize((1000, 750)).save(path, quality=60)  # 2 MB once decoded
    config = HTTP.get(f"{space.address}/config").json()
    [function] = [d["id"] for d in config["dependencies"] if d["api_name"] == "predict"]
    together = threading.Barrier(NUM_CLIENTS)

    def ask(_):
        image = uploaded(space.address, path)
        together.wait()
        return run_function(space.address, function, [image, None])["output"]["data"]

    expected = predict(client, path)
    space.begin_peak()
    before = space.peak_memory()
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        assert list(pool.map(ask, range(NUM_CLIENTS))) == [[expected]] * NUM_CLIENTS
    assert space.peak_memory() - before < 100 * MEGABYTE


def test_the_space_connects_to_no_other_host(client, space):
    assert_serves(client)
    assert space.outside.read_text(encoding="utf-8") == ""


def test_uploads_are_deleted_after_an_hour(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = build_page([ModelId(str(model_folder))])
    assert page.delete_cache == (3600, 3600)
    _, address, _ = launch(page, prevent_thread_lock=True, quiet=True)
    try:
        assert_serves(connect(address))
        assert any(path.name == "cat.jpg" for path in tmp_path.rglob("*"))
        delete_files_created_by_app(page, age=0)  # as Gradio does after an hour
        assert not any(path.name == "cat.jpg" for path in tmp_path.rglob("*"))
    finally:
        page.close()


def test_without_a_usable_model_the_page_shows_setup_instructions(tmp_path):
    with pytest.raises(ModelError) as unusable:
        build_page([ModelId(str(tmp_path))])
    page = build_setup_page(unusable.value)
    _, address, _ = launch(page, prevent_thread_lock=True, quiet=True)
    try:
        text = HTTP.get(address).text
        assert "The model cannot be loaded." in text
        assert "MODEL_ID" in text
    finally:
        page.close()


def test_models_are_compared_and_predict_takes_any_of_them(model_folder, tmp_path):
    """Of the same name, so that their titles are numbered."""
    other = tmp_path / model_folder.name
    shutil.copytree(model_folder, other)
    weights = load_file(other / "model.safetensors")
    weights["classifier.1.weight"] *= -1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    page = build_page([ModelId(str(model_folder)), ModelId(str(other))])
    _, address, _ = launch(page, prevent_thread_lock=True, quiet=True)
    cat = APP / "examples" / "cat.jpg"
    try:
        client = connect(address)
        inputs = [uploaded(address, cat)]
        event = run_function(address, function_of(address, "image", "change"), inputs)
        classes, heat_maps = event["output"]["data"]
        for number, folder in enumerate((model_folder, other), start=1):
            title = f"{folder.name} ({number})"
            expected = [one.label for one in Classifier(folder).predict(open_image(cat))]
            answer = client.predict(image=handle_file(cat), model=title, api_name="/predict")
            assert [one["label"] for one in answer] == expected
            assert f'aria-label="{title}"' in classes
            assert f"<strong>{title}</strong>" in heat_maps
        assert "The models disagree" in classes
        with pytest.raises(AppError, match="name one of these"):
            client.predict(image=handle_file(cat), model="another", api_name="/predict")
    finally:
        page.close()


def uploaded(address, path):
    """Upload a file as the page does, and return the input that names it."""
    files = {"files": (path.name, path.read_bytes())}
    [name] = HTTP.post(f"{address.rstrip('/')}/gradio_api/upload", files=files).json()
    return {"path": name, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.slow
def test_a_space_without_a_usable_model_starts_behind_a_proxy_that_is_down(tmp_path):
    proxy = {
        "http_proxy": "http://127.0.0.1:9",
        "no_proxy": "",
        "NO_PROXY": "",
    }  # a proxy that is down
    with serve(tmp_path, MODEL_ID="examples", **proxy) as served:  # a folder without a model
        page = HTTP.get(served.address).text
        assert "The model cannot be loaded." in page
        assert "MODEL_ID" in page
        assert served.outside.read_text(encoding="utf-8") == ""
