"""The page with a real model: answers, heat maps, keyboard, offline; and transformers.js.

With the environment variable SCREENSHOTS, screenshots are written to test-artifacts/web/.
"""

import base64
import json
import os
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect

from imagenet_rn50.model import load_exported, load_processor, logits_of
from tests.browser import DESKTOP, MARKS, PHONE, screenshot, tab_to
from tests.web.conftest import ROOT, visit
from tests.web.test_pixels import NODE

SCREENSHOTS = ROOT / "test-artifacts" / "web"
TRANSFORMERS_JS = "@huggingface/transformers@4.3.1"
NUM_IMAGES = 50

pytestmark = [pytest.mark.slow, *MARKS, pytest.mark.timeout(900)]

# Ask the page's worker about files, one after the other, and return its raw answers.
ASK = """async ([files, precision]) => {
    const model = await (await fetch("model.json")).json();
    const worker = new Worker("worker.js", { type: "module" });
    const answers = [];
    for (const [id, content] of files.entries()) {
        const file = new Blob([Uint8Array.from(atob(content), c => c.charCodeAt(0))]);
        const answer = new Promise((resolve) => {
            worker.onmessage = ({ data }) => data.progress || resolve(data);
        });
        worker.postMessage({ id, file, precision, model });
        const { result, error } = await answer;
        if (error) throw new Error(error.message);
        const { logits, maps, mapSize } = result;
        answers.push({ logits: Array.from(logits), maps: Array.from(maps), mapSize });
    }
    worker.terminate();
    return answers;
}"""


@pytest.fixture(scope="module")
def validation_images(digits):
    return sorted((digits / "source").rglob("val/*.JPEG"))[:NUM_IMAGES]


@pytest.fixture(scope="module")
def reference(digits, validation_images):
    """Pixels and logits of PyTorch, through the exported processor and model."""
    model = load_exported(digits / "export")
    processor = load_processor(digits / "export")
    images = [Image.open(path).convert("RGB") for path in validation_images]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        return model, pixels, logits_of(model, pixels).numpy()


@torch.inference_mode()
def class_map(model, pixels, index):
    """Returns where the image raises the logit of a class, from 0 to 1 (Zhou et al. 2016)."""
    features = model.base_model(pixels).last_hidden_state[0]
    weight = model.get_parameter("classifier.1.weight")[index]
    raised = torch.einsum("c,chw->hw", weight, features).relu()
    return (raised / raised.max()).numpy()


@pytest.mark.parametrize(("precision", "allowed"), [("fp16", 0.01), ("int8", 0.15)])
def test_logits_of_the_page_are_those_of_pytorch(
    browser, digits_page, validation_images, reference, precision, allowed
):
    model, pixels, theirs = reference
    files = [base64.b64encode(path.read_bytes()).decode() for path in validation_images]
    with visit(browser, digits_page) as page:
        answers = page.evaluate(ASK, [files, precision])
    ours = np.array([answer["logits"] for answer in answers])
    difference = np.abs(ours - theirs) / np.abs(theirs).max()
    same = (ours.argmax(1) == theirs.argmax(1)).sum()
    print(
        f"{precision}: logits differ by at most {difference.max():.2g} of the largest, "
        f"{difference.mean():.2g} on average; {same} of {NUM_IMAGES} classes are the same"
    )
    assert difference.max() < allowed
    assert same >= NUM_IMAGES - (precision == "int8")

    size = answers[0]["mapSize"]
    for number in range(5):
        index = int(theirs[number].argmax())
        maps = np.reshape(answers[number]["maps"], (-1, size["height"], size["width"]))
        expected = class_map(model, pixels[number : number + 1], index)
        positive = maps[index].clip(min=0)
        assert np.abs(positive / positive.max() - expected).max() < 2 * allowed
        bias = model.get_parameter("classifier.1.bias")[index].item()
        assert maps[index].mean() + bias == pytest.approx(ours[number, index], abs=allowed * 10)


def answered(page):
    classes = page.get_by_role("group", name="Most likely classes").get_by_role("radio")
    expect(classes).to_have_count(5)
    return classes


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_an_example_is_answered_with_classes_and_a_heat_map(
    browser, digits_page, name, size, scheme
):
    with visit(browser, digits_page, size, scheme) as page:
        expect(page.locator("#size")).to_contain_text("MB")
        screenshot(page, SCREENSHOTS, f"1-empty-{name}-{scheme}")
        page.get_by_role("button", name="digit 0").click()
        classes = answered(page)
        expect(classes.first).to_be_checked()
        expect(page.get_by_role("img", name="Heat map: ")).to_have_count(1)
        expect(page.get_by_role("status")).to_contain_text("Most likely")
        screenshot(page, SCREENSHOTS, f"2-answer-{name}-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        page.set_input_files("#file", {"name": "a", "mimeType": "text/plain", "buffer": b"text"})
        expect(page.get_by_role("alert")).to_contain_text("not an image")
        expect(page.locator("#result")).to_be_hidden()
        screenshot(page, SCREENSHOTS, f"3-error-{name}-{scheme}")


def test_the_page_can_be_used_with_the_keyboard_alone(browser, digits_page):
    with visit(browser, digits_page) as page:
        example = page.get_by_role("button", name="digit 1")
        tab_to(page, example, most=10)
        page.keyboard.press("Enter")
        classes = answered(page)
        first = page.locator("#heat").get_attribute("aria-label")
        tab_to(page, classes.first, most=10)
        page.keyboard.press("ArrowDown")
        expect(classes.nth(1)).to_be_checked()
        expect(page.locator("#heat")).not_to_have_attribute("aria-label", first)
        page.keyboard.press("Tab")
        page.keyboard.press("Home")  # the strength of the heat map
        expect(page.locator("#heat")).to_have_css("opacity", "0")


def test_a_visitor_can_choose_the_precision(browser, digits_page):
    with visit(browser, digits_page) as page:
        page.get_by_role("button", name="digit 0").click()
        answered(page)
        expect(page.locator("#time")).to_contain_text("8 bits")
        page.get_by_role("radio", name="16-bit weights").check()
        expect(page.locator("#time")).to_contain_text("16-bit weights")
        answered(page)


def test_after_the_first_image_everything_works_offline(browser, digits_page):
    context = browser.new_context()
    page = context.new_page()
    page.goto(digits_page)
    page.evaluate("navigator.serviceWorker.ready")
    page.get_by_role("button", name="digit 0").click()
    answered(page)
    names = page.locator("#classes .name").all_text_contents()
    page.close()
    context.set_offline(True)
    again = context.new_page()
    again.goto(digits_page)
    again.get_by_role("button", name="digit 0").click()
    answered(again)
    assert again.locator("#classes .name").all_text_contents() == names
    with pytest.raises(Exception, match="Failed to fetch"):
        again.evaluate("fetch('nothing-here').then(() => 0)")  # it really is offline
    again.get_by_role("radio", name="16-bit weights").check()  # never downloaded
    expect(again.get_by_role("alert")).to_contain_text("Check the connection")
    context.close()


# Run transformers.js on an exported folder: its pipeline on files, and its model on given pixels.
TRANSFORMERS = """
import { readFileSync } from "node:fs";
import { AutoModelForImageClassification, Tensor, env, pipeline } from "@huggingface/transformers";
const { folder, name, dtype, images, pixels, dims } = JSON.parse(readFileSync(0, "utf8"));
env.allowRemoteModels = false;
env.localModelPath = folder;
const classify = await pipeline("image-classification", name, { dtype });
const classes = [];
for (const image of images) classes.push((await classify(image))[0].label);
const input = new Tensor("float32", Float32Array.from(pixels), dims);
const model = await AutoModelForImageClassification.from_pretrained(name, { dtype });
const { logits } = await model({ pixel_values: input });
process.stdout.write(JSON.stringify({ classes, logits: Array.from(logits.data) }));
"""


@pytest.fixture(scope="module")
def transformers_js(tmp_path_factory):
    """A folder with transformers.js, from npm."""
    folder = tmp_path_factory.mktemp("node")
    command = [
        "npm",
        "install",
        "--silent",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        TRANSFORMERS_JS,
    ]
    subprocess.run(command, cwd=folder, check=True)
    (folder / "classify.mjs").write_text(TRANSFORMERS, encoding="utf-8")
    return folder


@pytest.mark.skipif(NODE is None, reason="needs node and npm")
@pytest.mark.parametrize(("dtype", "allowed"), [("fp32", 1e-4), ("fp16", 0.01), ("q8", 0.15)])
def test_transformers_js_runs_the_exported_folder(
    transformers_js, digits, validation_images, reference, dtype, allowed
):
    _, pixels, theirs = reference
    question = {
        "folder": f"{digits}{os.sep}",
        "name": "export",
        "dtype": dtype,
        "images": [str(path) for path in validation_images],
        "pixels": pixels.flatten().tolist(),
        "dims": list(pixels.shape),
    }
    done = subprocess.run(
        ["node", "classify.mjs"],
        cwd=transformers_js,
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    ours = np.reshape(answer["logits"], theirs.shape)
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < allowed
    config = json.loads((digits / "export" / "config.json").read_text(encoding="utf-8"))
    expected = [config["id2label"][str(index)] for index in theirs.argmax(1)]
    same = sum(ours == their for ours, their in zip(answer["classes"], expected, strict=True))
    print(f"transformers.js, {dtype}: {same} of {NUM_IMAGES} classes are the same")
    assert same >= 0.9 * NUM_IMAGES  # it resizes in its own way
