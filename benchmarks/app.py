"""Startup time and latency of the Space, with a ResNet-50 of 1,000 classes.

    python -m benchmarks.app --starts 3 --answers 30

The Space runs in its own process and is called through gradio_client. The weights are random, which
does not affect the times.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from gradio_client import Client, handle_file

from imagenet_rn50.classes import Classes
from imagenet_rn50.model import build_model, build_processor
from imagenet_rn50.recipe import DataRecipe, ModelRecipe

_APP = Path(__file__).parents[1] / "app"
_IMAGE = _APP / "examples" / "coffee.jpg"
_NUM_CLASSES = 1000
_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Arguments:
    """Measure startup time and latency of the Space."""

    starts: int = 3
    """Number of processes to start."""
    answers: int = 30
    """Sequential requests to time in each process."""


def main() -> None:
    """Print the time to the first response of each start and the latency of later ones."""
    arguments = tyro.cli(Arguments)
    starts, latencies = [], []
    with tempfile.TemporaryDirectory() as folder:
        _export(Path(folder))
        print(
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ResNet-50, {_NUM_CLASSES} "
            f"classes; {_IMAGE.name}, {_IMAGE.stat().st_size / 1000:.0f} KB"
        )
        for _ in range(arguments.starts):
            start = time.perf_counter()
            with _served(folder) as address:
                client = Client(address, verbose=False)
                _time_request(client)
                starts.append(time.perf_counter() - start)
                latencies += [_time_request(client) for _ in range(arguments.answers)]
    print("cold start to first response  " + "  ".join(f"{start:.1f} s" for start in starts))
    print(
        f"latency through gradio_client {1000 * statistics.median(latencies):.0f} ms median, "
        f"{1000 * min(latencies):.0f} ms fastest, {1000 * max(latencies):.0f} ms slowest "
        f"of {len(latencies)}"
    )


def _export(folder: Path) -> None:
    """Write a model as `python -m imagenet_rn50 export` does."""
    wnids = tuple(f"n{number:08d}" for number in range(_NUM_CLASSES))
    torch.manual_seed(0)
    build_model(ModelRecipe(), Classes(wnids, wnids)).save_pretrained(folder)
    build_processor(DataRecipe()).save_pretrained(folder)


@contextmanager
def _served(model: str) -> Iterator[str]:
    """Run the Space for the duration of the block; yield its URL once it responds."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, _APP / "app.py"],
        env=os.environ | {"MODEL_ID": model, "GRADIO_SERVER_PORT": str(port)},
        stdout=subprocess.DEVNULL,
    )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _TIMEOUT_SECONDS
    try:
        while not _responds(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"the Space did not respond within {_TIMEOUT_SECONDS} s or exited"
                )
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait()


def _responds(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=60):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _time_request(client: Client) -> float:
    """Classify an image and return the latency in seconds."""
    start = time.perf_counter()
    client.predict(image=handle_file(_IMAGE), api_name="/predict")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
