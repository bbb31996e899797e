"""The Space, served for real and called as a client calls it."""

import pytest
import torch
from PIL import Image

from app.app import build
from imagenet_rn50.model import build_model, build_processor
from imagenet_rn50.recipe_files import load_recipe
from tests.support import CLASSES, write_recipe


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    recipe = load_recipe(str(write_recipe(folder)))
    torch.manual_seed(0)
    build_model(recipe.model, CLASSES).save_pretrained(folder)
    build_processor(recipe.data).save_pretrained(folder)
    return folder


@pytest.mark.multiprocess
@pytest.mark.filterwarnings("ignore")  # gradio and its servers warn about each other
def test_a_client_gets_the_classes_that_the_pipeline_gives(exported, tmp_path):
    from gradio_client import Client, handle_file
    from transformers import pipeline

    path = tmp_path / "picture.png"
    Image.effect_noise((40, 30), 80).convert("RGB").save(path)
    expected = {
        answer["label"]: answer["score"]
        for answer in pipeline("image-classification", str(exported))(str(path), top_k=3)
    }
    page = build(str(exported))
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
    try:
        answer = Client(address, verbose=False).predict(handle_file(path), api_name="/predict")
    finally:
        page.close()
    shown = {each["label"]: each["confidence"] for each in answer["confidences"]}
    assert shown == pytest.approx(expected, abs=1e-5)
