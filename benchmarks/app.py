"""Startup time, latency, load and memory of the Space, with ResNet-50s of 1,000 classes.

    python -m benchmarks.app --starts 3 --answers 30 --visitors 50 --rounds 3 --models 2

The Space runs in its own process and is called through gradio_client for startup and latency. Under
load, all visitors upload an image of 12 megapixels at once, as the page does, and wait for classes
and heat map; they share the cores with the Space. The weights are random, which does not affect the
times.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import tyro
from gradio_client import Client, handle_file
from PIL import Image

from benchmarks.serving import TIMEOUT_SECONDS, Server, free_port, serving
from imagenet_rn50.classes import Classes
from imagenet_rn50.model import build_model, build_processor
from imagenet_rn50.recipe import DataRecipe, ModelRecipe

_APP = Path(__file__).parents[1] / "app"
_IMAGE = _APP / "examples" / "coffee.jpg"
_NUM_CLASSES = 1000


@dataclass(frozen=True)
class Arguments:
    """Measure startup time and latency of the Space."""

    starts: int = 3
    """Number of processes to start."""
    answers: int = 30
    """Sequential requests to time in each process."""
    visitors: int = 50
    """Visitors who upload an image at the same moment."""
    rounds: int = 3
    """How often they do, one after another."""
    models: int = 2
    """Number of models to compare side by side, for the peak memory; 1 omits it."""


def main() -> None:
    """Print startup time, latency, and time and memory under load, of one model and of several."""
    arguments = tyro.cli(Arguments)
    starts, latencies = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, f"model-{number}") for number in range(arguments.models)]
        for number, folder in enumerate(folders):
            _export(folder, number)
        print(
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ResNet-50, {_NUM_CLASSES} "
            f"classes; {_IMAGE.name}, {_IMAGE.stat().st_size / 1000:.0f} KB"
        )
        for _ in range(arguments.starts):
            start = time.perf_counter()
            with _served(folders[:1]) as space:
                client = Client(space.address, verbose=False)
                _time_request(client)
                starts.append(time.perf_counter() - start)
                latencies += [_time_request(client) for _ in range(arguments.answers)]
        print("cold start to first response  " + "  ".join(f"{start:.1f} s" for start in starts))
        print(
            f"latency through gradio_client {1000 * statistics.median(latencies):.0f} ms median, "
            f"{1000 * min(latencies):.0f} ms fastest, {1000 * max(latencies):.0f} ms slowest "
            f"of {len(latencies)}"
        )
        for served in [folders[:1]] + ([folders] if len(folders) > 1 else []):
            with _served(served) as space:
                _print_load(space, len(served), arguments)


def _print_load(space: Server, num_models: int, arguments: Arguments) -> None:
    """Let visitors come at once, several times, and print their times and the Space's memory."""
    before = space.memory("VmHWM")
    for number in range(1, arguments.rounds + 1):
        times = asyncio.run(_visit_together(space.address, arguments.visitors))
        answered = [seconds for seconds in times if seconds is not None]
        p50, p95 = np.percentile(answered, [50, 95])
        print(
            f"{num_models} model(s), {len(times)} visitors at once, round {number}: "
            f"{len(answered)} answered, {len(times) - len(answered)} told that the queue is full; "
            f"p50 {p50:.1f} s, p95 {p95:.1f} s, slowest {max(answered):.1f} s; "
            f"peak memory {space.memory('VmHWM'):.0f} MB"
        )
    peak, after = space.memory("VmHWM"), space.memory("VmRSS")
    print(
        f"{num_models} model(s), memory: {before:.0f} MB peak before, {peak:.0f} MB peak under "
        f"load, {after:.0f} MB afterwards"
    )


async def _visit_together(address: str, visitors: int) -> list[float | None]:
    """Return the seconds that each visitor waited; None if the queue was full."""
    image = _large_jpeg()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=TIMEOUT_SECONDS, limits=limits) as web:
        config = (await web.get("/config")).json()
        visits = (_visit(web, config, image, number) for number in range(visitors))
        return list(await asyncio.gather(*visits))


async def _visit(
    web: httpx.AsyncClient, config: dict[str, Any], image: bytes, number: int
) -> float | None:
    """Upload an image and wait for classes and heat map, as the page does."""
    start = time.perf_counter()
    distinct = image + str(start).encode()  # the Space keeps answers of equal files
    files = {"files": ("image.jpg", distinct, "image/jpeg")}
    (path,) = (await web.post("/gradio_api/upload", files=files)).raise_for_status().json()
    [component] = [c["id"] for c in config["components"] if c["props"].get("elem_id") == "image"]
    [function] = [d for d in config["dependencies"] if [component, "change"] in d["targets"]]
    session = f"visitor-{number}-{start}"
    uploaded = {"path": path, "meta": {"_type": "gradio.FileData"}}
    body = {"data": [uploaded], "fn_index": function["id"], "session_hash": session}
    joined = await web.post("/gradio_api/queue/join", json=body)
    if joined.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return None
    joined.raise_for_status()
    async with web.stream("GET", f"/gradio_api/queue/data?session_hash={session}") as events:
        async for line in events.aiter_lines():
            event = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if event.get("msg") == "process_completed":
                if not event["success"]:
                    raise RuntimeError(f"the Space failed: {event}")
                return time.perf_counter() - start
    raise RuntimeError("the Space did not answer")


def _large_jpeg() -> bytes:
    """Return an image of 12 megapixels."""
    rough = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rough).resize((4000, 3000)).save(buffer, format="JPEG", quality=60)
    return buffer.getvalue()


def _export(folder: Path, seed: int) -> None:
    """Write a model as `python -m imagenet_rn50 export` does."""
    wnids = tuple(f"n{number:08d}" for number in range(_NUM_CLASSES))
    torch.manual_seed(seed)
    build_model(ModelRecipe(), Classes(wnids, wnids)).save_pretrained(folder)
    build_processor(DataRecipe()).save_pretrained(folder)


@contextmanager
def _served(models: list[Path]) -> Iterator[Server]:
    """Run the Space for the duration of the block."""
    port = free_port()
    environment = {"MODEL_ID": ",".join(map(str, models)), "GRADIO_SERVER_PORT": f"{port}"}
    with serving([_APP / "app.py"], port, environment) as space:
        yield space


def _time_request(client: Client) -> float:
    """Classify an image and return the latency in seconds."""
    start = time.perf_counter()
    client.predict(image=handle_file(_IMAGE), api_name="/predict")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
