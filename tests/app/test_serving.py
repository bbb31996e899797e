"""The Space as programs use it: through gradio_client, many at once, and with bad files."""

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from gradio.route_utils import delete_files_created_by_app
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError
from PIL import Image
from transformers import pipeline

from space.model import ModelId
from space.page import build_page, launch
from tests.app.serving import APP, serve

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.filterwarnings("ignore"),  # gradio_client warns of its own sockets and loops
    pytest.mark.timeout(600),
]

NUM_CLIENTS = 50
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def client(space):
    return connect(space.address)


def connect(address):
    return Client(address, verbose=False, httpx_kwargs={"timeout": 300})  # a machine may be busy


def predict(client, path):
    return client.predict(picture=handle_file(path), api_name="/predict")


def assert_serves(client):
    assert len(predict(client, APP / "examples" / "cat.jpg")) == 5


def test_a_client_gets_what_the_pipeline_says(client, model_folder):
    reference = pipeline("image-classification", str(model_folder))
    for path in sorted((APP / "examples").glob("*.jpg")):
        answers, expected = predict(client, path), reference(str(path), top_k=5)
        assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
        scores = [answer["score"] for answer in expected]
        assert [answer["score"] for answer in answers] == pytest.approx(scores, abs=1e-5)


def test_the_only_endpoint_on_offer_is_predict(client):
    endpoints = client.view_api(return_format="dict")
    assert list(endpoints["named_endpoints"]) == ["/predict"]
    assert not endpoints["unnamed_endpoints"]


def test_the_documented_api_asks_for_a_file_and_for_no_address(space):
    told = httpx.get(f"{space.address}/gradio_api/info").json()["named_endpoints"]["/predict"]
    [picture] = told["parameters"]
    assert picture["python_type"] == {"type": "filepath", "description": "A file, not an address."}
    assert "files, not addresses" in told["description"]


def test_bad_files_get_a_plain_sentence_and_the_space_lives_on(client, tmp_path):
    draws = random.Random(0)
    sound = (APP / "examples" / "cat.jpg").read_bytes()
    path = tmp_path / "damaged.jpg"
    for _ in range(8):
        path.write_bytes(sound[: draws.randrange(1, len(sound) - 2)])
        with pytest.raises(AppError, match=r"damaged or cut off|no picture that can be read"):
            predict(client, path)
    path.write_bytes(bytes(21 * 10**6))
    with pytest.raises(Exception, match="exceeds the maximum file size"):
        predict(client, path)
    assert_serves(client)


@pytest.mark.parametrize("path", ["/etc/hostname", "{log}", "http://outside.example/a.jpg"])
def test_no_other_file_and_no_address_can_be_asked_for(client, space, path):
    """Of any function, as a program could that speaks to the server directly."""
    config = httpx.get(f"{space.address}/config").json()
    types = {component["id"]: component["type"] for component in config["components"]}
    file = {"path": path.format(log=space.log), "meta": {"_type": "gradio.FileData"}}
    sent = {"image": file, "file": [file]}
    asked = []
    for function in config["dependencies"]:
        data = [sent.get(types[component]) for component in function["inputs"]]
        if any(data):
            asked += [types[component] for component in function["inputs"]]
            body = {"data": data, "fn_index": function["id"], "session_hash": str(function["id"])}
            assert said_of(space, body)["success"] is False
    assert set(asked) >= {"image", "file"}
    assert space.outside.read_text(encoding="utf-8") == ""
    assert_serves(client)


def said_of(space, body):
    """Asks through the queue, as a page does; returns how it ended."""
    httpx.post(f"{space.address}/gradio_api/queue/join", json=body, timeout=60).raise_for_status()
    address = f"{space.address}/gradio_api/queue/data?session_hash={body['session_hash']}"
    with httpx.stream("GET", address, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                event = json.loads(line.removeprefix("data:"))
                if event["msg"] == "process_completed":
                    return event
    raise AssertionError("no answer")


def test_fifty_clients_at_once_get_answers_or_a_friendly_refusal(space, tmp_path):
    """And the memory is that of two pictures, not of fifty."""
    path = tmp_path / "large.jpg"
    rough = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(rough).resize((3000, 2000)).save(path, quality=60)  # 18 MB once decoded
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        clients = list(pool.map(lambda _: connect(space.address), range(NUM_CLIENTS)))
        expected = predict(clients[0], path)
        before, together = space.peak_memory(), threading.Barrier(NUM_CLIENTS)

        def ask(client):
            together.wait()
            try:
                return predict(client, path)
            except QueueError as refusal:
                return str(refusal)

        results = list(pool.map(ask, clients))
    refusals = [result for result in results if isinstance(result, str)]
    answers = [result for result in results if not isinstance(result, str)]
    assert answers == [expected] * len(answers)
    assert len(answers) >= 32
    assert set(refusals) <= {"Queue is full! Please try again."}
    assert space.peak_memory() - before < 300 * MEGABYTE
    assert_serves(clients[0])


def test_the_space_asks_no_other_host_for_anything(client, space):
    assert_serves(client)
    assert space.outside.read_text(encoding="utf-8") == ""


def test_what_was_uploaded_is_deleted_after_an_hour(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = build_page(ModelId(str(model_folder)))
    assert page.delete_cache == (3600, 3600)
    _, address, _ = launch(page, prevent_thread_lock=True, quiet=True)
    try:
        assert_serves(connect(address))
        assert any(path.name == "cat.jpg" for path in tmp_path.rglob("*"))
        delete_files_created_by_app(page, age=0)  # as Gradio does when the hour is over
        assert not any(path.name == "cat.jpg" for path in tmp_path.rglob("*"))
    finally:
        page.close()


def test_without_a_usable_model_the_page_says_what_to_set_even_behind_a_proxy(tmp_path):
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}  # nothing there
    with serve(tmp_path, MODEL_ID="examples", **proxy) as served:  # a folder, but of pictures
        page = httpx.get(served.address, timeout=60).text
        assert "The model cannot be loaded." in page
        assert "MODEL_ID" in page
        assert served.outside.read_text(encoding="utf-8") == ""
