"""How long the Space takes to start, and to answer: a ResNet-50 with 1,000 classes on this machine.

    python -m benchmarks.app --starts 3 --answers 30

The Space runs as it is served: a process of its own, asked through gradio_client. The weights are
random, which changes no time.
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
_PICTURE = _APP / "examples" / "coffee.jpg"
_NUM_CLASSES = 1000
_PATIENCE_SECONDS = 300


@dataclass(frozen=True)
class Arguments:
    """Times starts and answers of the Space."""

    starts: int = 3
    """Processes to start."""
    answers: int = 30
    """Answers to time in each, one after the other."""


def main() -> None:
    """Prints the time to the first answer of each start, and what later answers take."""
    arguments = tyro.cli(Arguments)
    starts, answers = [], []
    with tempfile.TemporaryDirectory() as folder:
        _export(Path(folder))
        print(
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ResNet-50, {_NUM_CLASSES} "
            f"classes; {_PICTURE.name}, {_PICTURE.stat().st_size / 1000:.0f} KB"
        )
        for _ in range(arguments.starts):
            began = time.perf_counter()
            with _served(folder) as address:
                client = Client(address, verbose=False)
                _ask(client)
                starts.append(time.perf_counter() - began)
                answers += [_ask(client) for _ in range(arguments.answers)]
    print("cold start to first answer   " + "  ".join(f"{start:.1f} s" for start in starts))
    print(
        f"answer through gradio_client {1000 * statistics.median(answers):.0f} ms median, "
        f"{1000 * min(answers):.0f} ms fastest, {1000 * max(answers):.0f} ms slowest "
        f"of {len(answers)}"
    )


def _export(folder: Path) -> None:
    """Writes a model as `python -m imagenet_rn50 export` does."""
    wnids = tuple(f"n{number:08d}" for number in range(_NUM_CLASSES))
    torch.manual_seed(0)
    build_model(ModelRecipe(), Classes(wnids, wnids)).save_pretrained(folder)
    build_processor(DataRecipe()).save_pretrained(folder)


@contextmanager
def _served(model: str) -> Iterator[str]:
    """Runs the Space until the block ends; yields its address once it answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, _APP / "app.py"],
        env=os.environ | {"MODEL_ID": model, "GRADIO_SERVER_PORT": str(port)},
        stdout=subprocess.DEVNULL,
    )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _PATIENCE_SECONDS
    try:
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the Space did not answer")
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=60):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _ask(client: Client) -> float:
    """Asks for the classes of a picture; returns seconds."""
    began = time.perf_counter()
    client.predict(picture=handle_file(_PICTURE), api_name="/predict")
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
