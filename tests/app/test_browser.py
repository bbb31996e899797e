"""Use the Space in headless Chromium. Screenshots are written to test-artifacts/space/."""

import csv
import io
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.app.conftest import NAMES
from tests.app.serving import APP

CHROMIUM = shutil.which("chromium")
SCREENSHOTS = Path(__file__).parents[2] / "test-artifacts" / "space"
DESKTOP, PHONE = (1280, 900), (360, 780)
TIMEOUT_MS = 60_000  # CI machines may be busy

pytestmark = [
    pytest.mark.browser,
    pytest.mark.multiprocess,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
    pytest.mark.filterwarnings("ignore"),  # Playwright's event loop and sockets
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def visit(browser, space, size=DESKTOP, scheme="light"):
    """Open the page; JavaScript errors and requests to other hosts fail the test at the end."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
    )
    context.set_default_timeout(TIMEOUT_MS)
    page, errors, requests = context.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.on("websocket", lambda socket: requests.append(socket.url))
    page.goto(space.address)
    expect(page.get_by_role("heading", name="What is in this image?")).to_be_visible(
        timeout=TIMEOUT_MS
    )
    yield page
    context.close()
    allowed = (space.address, space.address.replace("http", "ws"), "data:", "blob:")
    assert requests
    assert [url for url in requests if not url.startswith(allowed)] == []
    assert errors == []


def upload(page, *paths, where="#image"):
    page.set_input_files(f"{where} input[type=file]", [str(path) for path in paths])


def predictions(page):
    return page.get_by_role("group", name="Most likely classes").get_by_role("radio")


def heat_map(page):
    return page.get_by_alt_text("Heat map: ")


def wait_for_predictions(page):
    expect(predictions(page)).to_have_count(5, timeout=TIMEOUT_MS)
    expect(heat_map(page)).to_be_visible(timeout=TIMEOUT_MS)


def screenshot(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(600)  # wait for CSS transitions
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def test_an_uploaded_image_gets_five_classes_and_selecting_one_updates_the_heat_map(browser, space):
    with visit(browser, space) as page:
        expect(page.get_by_text("Drop, paste or choose")).to_be_visible()
        screenshot(page, "1-empty-desktop-light")
        upload(page, APP / "examples" / "cat.jpg")
        wait_for_predictions(page)
        expect(predictions(page).first).to_be_checked()
        expect(page.locator(".latency")).to_be_visible()
        first = heat_map(page).get_attribute("src")
        first_name = heat_map(page).get_attribute("alt")
        screenshot(page, "2-answer-desktop-light")

        predictions(page).nth(2).check()
        expect(heat_map(page)).not_to_have_attribute("alt", first_name, timeout=TIMEOUT_MS)
        assert heat_map(page).get_attribute("src") != first
        assert heat_map(page).get_attribute("alt").removeprefix("Heat map: ") in NAMES

        predictions(page).nth(2).press("ArrowUp")  # keyboard navigation
        expect(predictions(page).nth(1)).to_be_checked()

        page.get_by_label("Strength of the heat map").fill("0")
        expect(heat_map(page)).to_have_css("opacity", "0")


def test_examples_can_be_selected_with_the_keyboard(browser, space):
    with visit(browser, space) as page:
        example = page.get_by_role("button", name="Example: rocket")
        for _ in range(30):
            page.keyboard.press("Tab")
            if example.evaluate("element => element === document.activeElement"):
                break
        page.keyboard.press("Enter")
        wait_for_predictions(page)


def test_a_damaged_file_shows_an_error_and_the_next_image_is_classified(browser, space, tmp_path):
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes((APP / "examples" / "cat.jpg").read_bytes()[:5000])
    with visit(browser, space) as page:
        upload(page, damaged)
        alert = page.get_by_role("alert").filter(has_text="damaged")
        expect(alert).to_be_visible(timeout=TIMEOUT_MS)
        screenshot(page, "3-bad-file-desktop-light")
        page.get_by_role("button", name="Example: coffee").click()
        wait_for_predictions(page)
        expect(alert).to_have_count(0)


@pytest.mark.parametrize(("name", "size"), [("phone", PHONE), ("desktop", DESKTOP)])
def test_every_tab_fits_the_window_in_dark_mode(browser, space, name, size):
    with visit(browser, space, size, "dark") as page:
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(int(part) for part in background.strip("rgba()").split(",")[:3]) < 150

        def assert_fits():
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]

        page.get_by_role("button", name="Example: astronaut").click()
        wait_for_predictions(page)
        screenshot(page, f"4-answer-{name}-dark")
        assert_fits()
        for number, tab in ((5, "Many images"), (6, "About")):
            page.get_by_role("tab", name=tab).click()
            screenshot(page, f"{number}-{tab.split()[0].lower()}-{name}-dark")
            assert_fits()


def test_the_model_card_is_rendered_without_scripts_and_images(browser, space):
    with visit(browser, space) as page:
        page.get_by_role("tab", name="About").click()
        expect(page.get_by_text("A card")).to_be_visible()
        expect(page.get_by_role("cell", name="12.5%")).to_be_visible()
        assert page.evaluate("window.stolen") is None


def test_many_images_are_exported_as_a_table_and_a_csv(browser, space, tmp_path):
    text_file = tmp_path / "words.txt"
    text_file.write_text("no image")
    with visit(browser, space) as page:
        page.get_by_role("tab", name="Many images").click()
        upload(page, *sorted((APP / "examples").glob("*.jpg")), text_file, where="#files")
        expect(page.locator("#files").get_by_text("words")).to_be_visible(timeout=TIMEOUT_MS)
        page.get_by_role("button", name="Classify", exact=True).click()
        rows = page.get_by_role("region", name="Classes").get_by_role("row")
        expect(rows).to_have_count(6, timeout=TIMEOUT_MS)
        expect(rows.filter(has_text="words.txt")).to_contain_text("not a supported image")
        screenshot(page, "7-table-desktop-light")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download as CSV").click()
        text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [line["file"] for line in lines] == [
        *("astronaut.jpg", "cat.jpg", "coffee.jpg", "rocket.jpg", "words.txt")
    ]
    assert all(line["class_5"] in NAMES for line in lines[:-1])


def test_the_api_page_documents_predict(browser, space):
    with visit(browser, space) as page:
        page.get_by_role("button", name="Use via API").click()
        expect(page.get_by_text("/predict").first).to_be_visible(timeout=TIMEOUT_MS)
        screenshot(page, "8-api-desktop-light")
