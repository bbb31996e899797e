"""Serve the Space as Hugging Face does: copy app/ to a folder of its own and run `app.py`."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx

from tests.support import free_ports

APP = Path(__file__).parents[2] / "app"
# One client: each would read the certificates of the system anew. No connection is kept: servers
# close those that nobody uses.
HTTP = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))

# Imported by Python at startup as sitecustomize: log and block connections to other hosts.
GUARD = """
import os, sys

def guard(event, arguments):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0"}:
        with open(os.environ["OUTSIDE"], "a") as file:
            file.write(f"{event} {host}\\n")
        raise OSError(f"the test allows no connection to {host}")

sys.addaudithook(guard)
"""


@dataclass(frozen=True)
class Served:
    """A running Space.

    Attributes:
        address: Its URL.
        pid: Its process id.
        log: Its output.
        outside: Log of the blocked connections to other hosts.
        uploads: Folder of uploaded files.
    """

    address: str
    pid: int
    log: Path
    outside: Path
    uploads: Path

    def peak_memory(self):
        """Return the peak resident memory in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])


@contextmanager
def serve(folder, **environment):
    """Run `python app.py` in `folder`/space for the duration of the block."""
    shutil.copytree(APP, folder / "space", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    (folder / "outside").touch()
    [port] = free_ports()
    settings = {
        "PYTHONPATH": str(folder / "guard"),
        "OUTSIDE": str(folder / "outside"),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
    }
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MODEL_", "GRADIO_"))
    }
    address, log = f"http://127.0.0.1:{port}", folder / "log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=folder / "space",
            env=inherited | settings | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(address, process, log)
        yield Served(address, process.pid, log, folder / "outside", folder / "uploads")
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_for(address, process, log, seconds=240):
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"the Space does not answer:\n{log.read_text(encoding='utf-8')}")


def function_of(address, elem_id, event):
    """Return the index of the function that an event of a component calls."""
    config = HTTP.get(f"{address.rstrip('/')}/config").json()
    [component] = [c["id"] for c in config["components"] if c["props"].get("elem_id") == elem_id]
    [function] = [d for d in config["dependencies"] if [component, event] in d["targets"]]
    return function["id"]


def run_function(address, function, data):
    """Call a function through the queue, as the page does, and return its final event."""
    queue, session = f"{address.rstrip('/')}/gradio_api/queue", uuid4().hex
    body = {"data": data, "fn_index": function, "session_hash": session}
    HTTP.post(f"{queue}/join", json=body).raise_for_status()
    with HTTP.stream("GET", f"{queue}/data?session_hash={session}") as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                event = json.loads(line.removeprefix("data:"))
                if event["msg"] == "process_completed":
                    return event
    raise AssertionError("no answer")
