"""Serve the Space as Hugging Face does: copy app/ to a folder of its own and run `app.py`."""

import json
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import gradio.http_server
import httpx
import pytest

from tests.support import free_ports

ROOT = Path(__file__).parents[2]
APP = ROOT / "app"
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


STARTER = pytest.StashKey["Starter"]()


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

    def begin_peak(self):
        """Make the peak of memory that from now on."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5", encoding="ascii")

    def peak_memory(self):
        """Return the peak resident memory in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])


class Starter:
    """A fork of this process that becomes the Space when it is told to.

    It is made before the first test, and has imported what takes a new process 14 seconds of CPU.
    It forgets the modules of this repository, so that `app.py` imports those of its own folder.
    """

    def __init__(self):
        theirs, self._order = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._order)
            _become_space(theirs)
        os.close(theirs)
        self._status = None

    def start(self, folder, settings, log):
        order = {"folder": str(folder), "settings": settings, "log": str(log)}
        with os.fdopen(self._order, "w", encoding="utf-8") as file:
            json.dump(order, file)
        return self

    def poll(self):
        """Return the exit code, or None while it runs; like Popen."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return None if self._status is None else os.waitstatus_to_exitcode(self._status)

    def terminate(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _become_space(orders):
    """Wait for the folder and the settings, and run `app.py` there in this process."""
    code = 1
    try:
        with os.fdopen(orders, encoding="utf-8") as file:
            text = file.read()
        if not text:  # the tests are over
            os._exit(0)
        order = json.loads(text)
        output = os.open(order["log"], os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdin = open(os.devnull, encoding="utf-8")
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False, buffering=1)
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)
        logging.getLogger().handlers.clear()  # pytest's
        warnings.resetwarnings()  # pytest makes them errors
        warnings.simplefilter("ignore")
        for name in list(filter(_is_of_model_or_gradio, os.environ)):
            del os.environ[name]
        os.environ.update(order["settings"])
        gradio.http_server.INITIAL_PORT_VALUE = int(os.environ["GRADIO_SERVER_PORT"])  # was read
        for name, module in list(sys.modules.items()):
            if _is_ours(getattr(module, "__file__", None) or ""):
                del sys.modules[name]
        exec(GUARD, {})
        os.chdir(order["folder"])
        sys.path[:] = [order["folder"], *(path for path in sys.path if path and not _is_ours(path))]
        sys.argv = ["app.py"]
        runpy.run_path("app.py", run_name="__main__")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _is_of_model_or_gradio(name):
    return name.startswith(("MODEL_", "GRADIO_"))


def _is_ours(path):
    """Whether a module or a folder of modules is of this repository."""
    return Path(path).is_relative_to(ROOT) and not Path(path).is_relative_to(sys.prefix)


@contextmanager
def serve(folder, starter=None, **environment):
    """Run `python app.py` in `folder`/space for the duration of the block.

    Args:
        folder: A new folder.
        starter: Becomes the Space; None runs Python anew.
        **environment: Environment variables.
    """
    space, log = folder / "space", folder / "log"
    shutil.copytree(APP, space, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "outside").touch()
    log.touch()
    [port] = free_ports()
    settings = {
        "OUTSIDE": str(folder / "outside"),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
    } | environment
    process = starter.start(space, settings, log) if starter else _run(space, settings, log)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, process, log)
        yield Served(address, process.pid, log, folder / "outside", folder / "uploads")
    finally:
        process.terminate()
        process.wait(timeout=60)


def _run(space, settings, log):
    """Run Python anew, with the guard."""
    guard = space.parent / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    inherited = {
        name: value for name, value in os.environ.items() if not _is_of_model_or_gradio(name)
    }
    with log.open("w", encoding="utf-8") as output:
        return subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=space,
            env=inherited | {"PYTHONPATH": str(guard)} | settings,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


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
