"""Use the Space in headless Chromium.

With the environment variable SCREENSHOTS, screenshots are written to test-artifacts/space/.
"""

import csv
import io
import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import expect
from safetensors.torch import load_file, save_file

from tests.app.conftest import NAMES
from tests.app.serving import APP, serve
from tests.browser import (
    DESKTOP,
    MARKS,
    PHONE,
    TIMEOUT_MS,
    new_context,
    screenshot,
    tab_to,
    use_page,
)

SCREENSHOTS = Path(__file__).parents[2] / "test-artifacts" / "space"

pytestmark = [*MARKS, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def tab(browser):
    """A page that each test loads anew: in one of its own, Gradio's scripts would be compiled."""
    with new_context(browser) as context:
        yield context.new_page()


@contextmanager
def visit(tab, space, size=DESKTOP, scheme="light"):
    """Open the page; JavaScript errors and requests to other hosts fail the test at the end."""
    sockets = []

    def add_socket(socket):
        sockets.append(socket.url)

    with use_page(tab, size, scheme) as (page, requests, _):
        page.on("websocket", add_socket)
        page.goto(space.address)
        expect(page.get_by_role("heading", name="What is in this image?")).to_be_visible(
            timeout=TIMEOUT_MS
        )
        yield page
        page.remove_listener("websocket", add_socket)
    allowed = (space.address, space.address.replace("http", "ws"), "data:", "blob:")
    urls = [*(request.url for request in requests), *sockets]
    assert [url for url in urls if not url.startswith(allowed)] == []


def upload(page, *paths, where="#image"):
    page.set_input_files(f"{where} input[type=file]", [str(path) for path in paths])


def predictions(page):
    return page.get_by_role("group", name="Most likely classes").get_by_role("radio")


def heat_map(page):
    return page.get_by_alt_text("Heat map: ")


def wait_for_predictions(page):
    expect(predictions(page)).to_have_count(5, timeout=TIMEOUT_MS)
    expect(heat_map(page)).to_be_visible(timeout=TIMEOUT_MS)


def test_an_uploaded_image_gets_five_classes_and_selecting_one_updates_the_heat_map(tab, space):
    with visit(tab, space) as page:
        wait_for_predictions(page)  # of the first example
        opened = heat_map(page).get_attribute("src")
        screenshot(page, SCREENSHOTS, "1-open-desktop-light")
        upload(page, APP / "examples" / "cat.jpg")
        expect(heat_map(page)).not_to_have_attribute("src", opened, timeout=TIMEOUT_MS)
        wait_for_predictions(page)
        expect(predictions(page).first).to_be_checked()
        expect(page.locator(".latency")).to_be_visible()
        first = heat_map(page).get_attribute("src")
        first_name = heat_map(page).get_attribute("alt")
        screenshot(page, SCREENSHOTS, "2-answer-desktop-light")

        predictions(page).nth(2).check()
        expect(heat_map(page)).not_to_have_attribute("alt", first_name, timeout=TIMEOUT_MS)
        assert heat_map(page).get_attribute("src") != first
        assert heat_map(page).get_attribute("alt").removeprefix("Heat map: ") in NAMES

        predictions(page).nth(2).press("ArrowUp")  # keyboard navigation
        expect(predictions(page).nth(1)).to_be_checked()

        page.get_by_label("Strength of the heat map").fill("0")
        expect(heat_map(page)).to_have_css("opacity", "0")


def test_examples_can_be_selected_with_the_keyboard(tab, space):
    with visit(tab, space) as page:
        opened = heat_map(page).get_attribute("src")
        example = page.get_by_role("button", name="Example: rocket")
        tab_to(page, example, most=30)
        page.keyboard.press("Enter")
        expect(heat_map(page)).not_to_have_attribute("src", opened, timeout=TIMEOUT_MS)
        wait_for_predictions(page)


def test_a_bad_file_shows_an_error_and_no_broken_image_and_the_next_one_is_classified(
    tab, space, tmp_path
):
    damaged, text = tmp_path / "damaged.jpg", tmp_path / "words.txt"
    damaged.write_bytes((APP / "examples" / "cat.jpg").read_bytes()[:5000])
    text.write_text("no image")
    renamed = shutil.copy(text, tmp_path / "words.jpg")
    with visit(tab, space) as page:
        for path, message in ((damaged, "damaged"), (renamed, "not a supported image")):
            upload(page, path)
            alert = page.get_by_role("alert").filter(has_text=message)
            expect(alert).to_be_visible(timeout=TIMEOUT_MS)
            expect(page.locator("#image img")).to_have_count(0, timeout=TIMEOUT_MS)
            expect(alert).to_be_visible()
            expect(predictions(page)).to_have_count(0)
        upload(page, text)
        expect(page.get_by_text("Invalid file type")).to_be_visible(timeout=TIMEOUT_MS)
        expect(page.locator("#image img")).to_have_count(0)
        screenshot(page, SCREENSHOTS, "3-bad-file-desktop-light")
        page.get_by_role("button", name="Example: coffee").click()
        wait_for_predictions(page)
        expect(alert).to_have_count(0)


@pytest.mark.parametrize(("name", "size"), [("phone", PHONE), ("desktop", DESKTOP)])
def test_every_tab_fits_the_window_in_dark_mode(tab, space, name, size):
    with visit(tab, space, size, "dark") as page:
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(int(part) for part in background.strip("rgba()").split(",")[:3]) < 150

        def assert_fits():
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]

        page.get_by_role("button", name="Example: astronaut").click()
        wait_for_predictions(page)
        screenshot(page, SCREENSHOTS, f"4-answer-{name}-dark")
        assert_fits()
        for number, title, shown in ((5, "Many images", "Classify"), (6, "About", "A card")):
            page.get_by_role("tab", name=title).click()
            expect(page.get_by_text(shown, exact=True)).to_be_visible()
            screenshot(page, SCREENSHOTS, f"{number}-{title.split()[0].lower()}-{name}-dark")
            assert_fits()


def test_the_model_card_is_rendered_with_its_curves_and_without_scripts(tab, space):
    with visit(tab, space) as page:
        page.get_by_role("tab", name="About").click()
        expect(page.get_by_text("A card")).to_be_visible()
        expect(page.get_by_role("cell", name="12.5%")).to_be_visible()
        assert page.evaluate("window.stolen") is None
        curve = page.get_by_alt_text("loss over epochs")
        expect(curve).to_be_visible()
        assert curve.evaluate("image => image.naturalWidth") == 600


def test_many_images_are_exported_as_a_table_and_a_csv(tab, space, tmp_path):
    text_file = tmp_path / "words.txt"
    text_file.write_text("no image")
    with visit(tab, space) as page:
        page.get_by_role("tab", name="Many images").click()
        upload(page, *sorted((APP / "examples").glob("*.jpg")), text_file, where="#files")
        expect(page.locator("#files").get_by_text("words")).to_be_visible(timeout=TIMEOUT_MS)
        page.get_by_role("button", name="Classify", exact=True).click()
        rows = page.get_by_role("region", name="Classes").get_by_role("row")
        expect(rows).to_have_count(6, timeout=TIMEOUT_MS)
        expect(rows.filter(has_text="words.txt")).to_contain_text("not a supported image")
        screenshot(page, SCREENSHOTS, "7-table-desktop-light")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download as CSV").click()
        text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [line["file"] for line in lines] == [
        *("astronaut.jpg", "cat.jpg", "coffee.jpg", "rocket.jpg", "words.txt")
    ]
    assert all(line["class_5"] in NAMES for line in lines[:-1])


@pytest.mark.slow  # test_serving asks the API itself
def test_the_api_page_documents_predict(tab, space):
    with visit(tab, space) as page:
        page.get_by_role("button", name="Use via API").click()
        expect(page.get_by_text("/predict").first).to_be_visible(timeout=TIMEOUT_MS)
        screenshot(page, SCREENSHOTS, "8-api-desktop-light")


@pytest.fixture(scope="module")
def comparison(model_folder, tmp_path_factory):
    """The Space, comparing two models; to the second one, every image is unfamiliar."""
    other = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(model_folder, other)
    calibration = {"score": "log-odds of the maximum softmax", "temperature": 1}
    calibration |= {"threshold": 1e9, "false_alarm_rate": 0.05, "num_images": 40}
    (other / "calibration.json").write_text(json.dumps(calibration), encoding="utf-8")
    weights = load_file(other / "model.safetensors")
    weights["classifier.1.weight"] *= 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with serve(tmp_path_factory.mktemp("both"), MODEL_ID=f"{model_folder},{other}") as served:
        yield served


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "size"), [("phone", PHONE), ("desktop", DESKTOP)])
def test_two_models_are_compared_side_by_side(tab, comparison, name, size, scheme):
    with visit(tab, comparison, size, scheme) as page:
        answers = page.locator("section.answer")
        expect(answers).to_have_count(2, timeout=TIMEOUT_MS)
        expect(heat_map(page)).to_have_count(2)
        expect(page.get_by_text("models say").or_(page.get_by_text("disagree"))).to_be_visible()
        note = page.get_by_text("Unlike the images")
        expect(note).to_have_count(1)
        classes = answers.nth(1).get_by_role("group")
        assert note.bounding_box()["y"] < classes.bounding_box()["y"]
        screenshot(page, SCREENSHOTS, f"9-compare-{name}-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]

        first, second = (heat_map(page).nth(number).get_attribute("src") for number in (0, 1))
        answers.nth(1).get_by_role("radio").nth(3).check()
        expect(heat_map(page).nth(1)).not_to_have_attribute("src", second, timeout=TIMEOUT_MS)
        expect(heat_map(page).nth(0)).to_have_attribute("src", first)
        expect(answers.nth(0).get_by_role("radio").first).to_be_checked()
