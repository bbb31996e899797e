"""Run a Python program that serves a page, and wait until it responds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Server:
    """A running program: the URL of its page, and its process."""

    address: str
    pid: int

    def memory(self, field: str) -> float:
        """Return a field of /proc/PID/status, such as VmHWM, in MB."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        (line,) = (line for line in status.splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024 / 1e6


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def serving(
    words: Sequence[str | Path], port: int, environment: Mapping[str, str]
) -> Iterator[Server]:
    """Run a program for the duration of the block; yield it once it responds.

    Args:
        words: Arguments of Python, from the project's folder.
        port: Where it will listen.
        environment: Variables to add to this process's.

    Raises:
        RuntimeError: If the program exits, or does not respond in time.
    """
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=os.environ | environment, stdout=subprocess.DEVNULL
    )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + TIMEOUT_SECONDS
    try:
        while not _responds(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"{words[0]} did not respond within {TIMEOUT_SECONDS} s or exited"
                )
            time.sleep(0.05)
        yield Server(address, process.pid)
    finally:
        process.terminate()
        process.wait()


def _responds(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=60):
            return True
    except (urllib.error.URLError, OSError):
        return False
