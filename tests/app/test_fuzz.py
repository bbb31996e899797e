"""Hostile files reach the Space as visitors send them: each is answered, and nothing is left."""

import tempfile
from itertools import islice
from pathlib import Path

import httpx
import pytest
from gradio.route_utils import delete_files_created_by_app

from space.model import ModelId
from space.page import build_page, launch
from space.uploads import remove_abandoned_uploads
from tests.app.fuzz import hostile_files
from tests.app.serving import HTTP, function_of, run_function

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Pillow warns about some damage
    pytest.mark.timeout(600),
]

MEGABYTE = 2**20


@pytest.mark.parametrize(
    ("seed", "number"), [(0, 40), pytest.param(1, 500, marks=pytest.mark.slow)]
)
def test_hostile_files_are_answered_and_leave_nothing_behind(
    model_folder, tmp_path, monkeypatch, seed, number
):
    uploads, elsewhere = tmp_path / "uploads", tmp_path / "a" / "b" / "elsewhere"
    elsewhere.mkdir(parents=True)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.chdir(elsewhere)
    page = build_page([ModelId(str(model_folder))])
    _, address, _ = launch(page, prevent_thread_lock=True, quiet=True)
    try:
        function = function_of(address, "image", "change")
        begin_peak()
        before = memory("VmRSS")
        answers = [
            answer(address, function, name, content)
            for name, content in islice(hostile_files(seed), number)
        ]
        peak = memory("VmHWM") - before
        delete_files_created_by_app(page, age=0)  # as Gradio does after an hour
        remove_abandoned_uploads(age=0)
    finally:
        page.close()
    classified = sum("Most likely classes" in answer for answer in answers)
    refused = sum('role="alert"' in answer for answer in answers)
    print(f"{classified} classified, {refused} refused, {peak / MEGABYTE:.0f} MB peak")
    assert classified + refused == number
    assert min(classified, refused) > number // 10
    assert peak < 300 * MEGABYTE
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not Path("/etc/escaped").exists()


def answer(address, function, name, content):
    """Upload a file as the page does, and return the HTML of the answer or of the refusal."""
    files = {"files": (name, content, "image/png")}
    uploaded = HTTP.post(f"{address}gradio_api/upload", files=files)
    if uploaded.status_code == httpx.codes.BAD_REQUEST:  # a name that no browser sends
        return '<p role="alert">'
    uploaded.raise_for_status()
    [path] = uploaded.json()
    file = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    event = run_function(address, function, [file])
    assert event["success"], event
    return event["output"]["data"][0]


def memory(field):
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return 1024 * int(line.split()[1])


def begin_peak():
    """Make VmHWM the peak from now on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
