"""Pages in headless Chromium, for the tests of the Space and of the page that needs no server."""

import os
import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium")
DESKTOP, PHONE = (1280, 900), (360, 780)
TIMEOUT_MS = 60_000  # CI machines may be busy

# Windows have an address bar, whose suggestions are pages that take a second to start. Of several
# such switches the last one counts, so this one repeats those that Playwright disables of what
# asks other hosts at the start or changes how a page is painted.
_DISABLED = (
    *("WebUIOmniboxPopup", "WebUIOmniboxAimPopup"),
    *("AimEnabled", "NetworkTimeServiceQuerying", "OptimizationHints", "PreconnectToSearch"),
    *("HttpsUpgrades", "HttpsFirstBalancedModeAutoEnable", "LensOverlay", "MediaRouter"),
    *("AvoidUnnecessaryBeforeUnloadCheckSync", "DestroyProfileOnBrowserClose", "PaintHolding"),
    *("ThirdPartyStoragePartitioning", "AvoidCorsURLLoaderRestartOnRedirect"),
)
SWITCHES = ["--no-sandbox", f"--disable-features={','.join(_DISABLED)}"]

MARKS = [
    pytest.mark.browser,
    pytest.mark.multiprocess,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
    pytest.mark.filterwarnings("ignore"),  # Playwright's event loop and sockets
]


@contextmanager
def new_page(browser, size, scheme):
    """Yield what `use_page` does, of a page that shares nothing with others."""
    with new_context(browser) as context:
        with use_page(context.new_page(), size, scheme) as used:
            yield used


@contextmanager
def new_context(browser):
    """Yield a context with its own cache, storage and service workers."""
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    yield context
    context.close()


@contextmanager
def use_page(page, size, scheme):
    """Yield the page, the requests of its context, and errors, which fail the test at the end.

    JavaScript errors are among them; add others to the list.
    """
    width, height = size
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)
    errors, requests = [], []

    def add_error(error):
        errors.append(str(error))

    def add_request(request):
        requests.append(request)

    page.on("pageerror", add_error)
    page.context.on("request", add_request)
    yield page, requests, errors
    page.remove_listener("pageerror", add_error)
    page.context.remove_listener("request", add_request)
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
    """Write a PNG of the whole page, if the environment variable SCREENSHOTS is set."""
    if not os.environ.get("SCREENSHOTS"):
        return
    folder.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(600)  # wait for CSS transitions
    page.screenshot(path=folder / f"{name}.png", full_page=True)
