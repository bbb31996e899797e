"""Pages in headless Chromium, for the tests of the Space and of the page that needs no server."""

import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium")
DESKTOP, PHONE = (1280, 900), (360, 780)
TIMEOUT_MS = 60_000  # CI machines may be busy

MARKS = [
    pytest.mark.browser,
    pytest.mark.multiprocess,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
    pytest.mark.filterwarnings("ignore"),  # Playwright's event loop and sockets
]


@contextmanager
def new_page(browser, size, scheme):
    """Yield an empty page, the requests of its context, and errors, which fail the test at the end.

    JavaScript errors are among them; add others to the list.
    """
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(TIMEOUT_MS)
    page, errors, requests = context.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    context.on("request", lambda request: requests.append(request))
    yield page, requests, errors
    context.close()
    assert requests
    assert errors == []


def tab_to(page, element, most):
    """Press Tab until an element has the focus, at most so often."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if element.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError("Tab does not reach the element")


def screenshot(page, folder, name):
    """Write a PNG of the whole page."""
    folder.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(600)  # wait for CSS transitions
    page.screenshot(path=folder / f"{name}.png", full_page=True)
