"""MB/s and peak memory of `index`, from disk and from a web server; load time of a manifest.

    python -m benchmarks.indexing --shards 16 --megabytes 16 --rounds 3

The shards hold crops of photographs of about 110 KB each. The web server runs in a process of its
own on loopback. Contenders take turns, each in a fresh process, so that a change in the machine's
speed meets all alike; `sha256sum` reads the same files and does nothing else that `index` does. The
shards lie in the page cache. The time is that of the call, without imports; peak memory is that of
the process, imports and mapped pages of shards included.

The manifest that is loaded has as many samples as ImageNet-1k's training split.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from imagenet_rn50.shards.imagenet1k import NUM_CLASSES, NUM_IMAGES
from imagenet_rn50.shards.manifest import TRAIN, Manifest, Shard, Split

_STREAMS = (1, 4, 16)
_NUM_DIFFERENT = 64
_CHILD = """
import json, resource, sys, time
from pathlib import Path
import aiohttp, fsspec.implementations.http
from imagenet_rn50.shards.index import index
begin = time.perf_counter()
index(sys.argv[1], out=Path(sys.argv[2]), num_threads=int(sys.argv[3]))
seconds = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
print(json.dumps({"seconds": seconds, "peak_mb": peak}))
"""
_SERVER = """
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *arguments): pass

server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=sys.argv[1]))
print(server.server_port, flush=True)
server.serve_forever()
"""


@dataclass(frozen=True)
class Arguments:
    """Time indexing from a disk and from a web server in turn."""

    shards: int = 16
    """Number of shards."""
    megabytes: float = 16.0
    """Size of each shard, MB."""
    rounds: int = 3
    """Turns of each."""
    folder: Path | None = None
    """Where to work; by default a temporary folder."""


def main() -> None:
    """Print the median MB/s of each, its ratio to sha256sum in each round, and peak memory."""
    arguments = tyro.cli(Arguments)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        shards = folder / "shards"
        num_bytes, num_images = _write_shards(shards, arguments)
        print(
            f"{os.cpu_count()} cores; {arguments.shards} shards, {num_bytes / 1e6:,.0f} MB, "
            f"{num_images:,} images; {arguments.rounds} rounds; load of the machine before the "
            f"first round: {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        with _serving(shards) as address:
            results = _run_rounds(shards, address, folder / "out", arguments.rounds)
        _report(results, num_bytes, num_images)
        seconds = _load_times(folder / "large", arguments.rounds)
    shown = ", ".join(f"{s:.2f}" for s in seconds)
    print(f"loading a manifest of {NUM_IMAGES[TRAIN]:,} samples: {shown} s")


def _write_shards(folder: Path, arguments: Arguments) -> tuple[int, int]:
    """Write the shards; return how many bytes and images they have."""
    from sklearn.datasets import load_sample_images

    folder.mkdir()
    photograph = Image.fromarray(load_sample_images().images[0])
    rng = np.random.default_rng(0)
    crops = [_crop(photograph, rng) for _ in range(_NUM_DIFFERENT)]
    count = 0
    for number in tqdm(range(arguments.shards), desc="writing"):
        path = folder / f"photos-train-{number:04d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            while tar.offset < arguments.megabytes * 1e6:
                wnid = f"n{count % 10:08d}"
                # A comment makes each image another one.
                comment = b"\xff\xfe\0\x0a%08d" % count
                crop = crops[count % _NUM_DIFFERENT]
                jpeg = crop[:2] + comment + crop[2:]
                for ending, content in (("jpg", jpeg), ("cls", b"%d" % (count % 10))):
                    info = tarfile.TarInfo(f"{wnid}_{count}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                count += 1
    return sum(path.stat().st_size for path in folder.iterdir()), count


def _crop(photograph: Image.Image, rng: np.random.Generator) -> bytes:
    """Return a JPEG of 500x375 px of a random part of a photograph."""
    left = int(rng.integers(0, photograph.width - 400))
    top = int(rng.integers(0, photograph.height - 300))
    buffer = io.BytesIO()
    crop = photograph.crop((left, top, left + 400, top + 300)).resize((500, 375))
    crop.save(buffer, format="JPEG", quality=96)
    return buffer.getvalue()


@contextmanager
def _serving(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback from another process; yield its address."""
    command = [sys.executable, "-c", _SERVER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.terminate()


def _run_rounds(
    shards: Path, address: str, out: Path, rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Let the contenders take turns; return seconds and peak memory of each turn."""
    contenders: dict[str, tuple[str, int]] = {
        f"{kind}, {streams} streams": (location, streams)
        for kind, location in (("disk", str(shards)), ("http", address))
        for streams in _STREAMS
    }
    results: dict[str, list[dict[str, float]]] = {"sha256sum": []}
    results |= {name: [] for name in contenders}
    for turn in range(rounds):
        begin = time.perf_counter()
        files = [str(path) for path in sorted(shards.iterdir())]
        subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL)
        results["sha256sum"].append({"seconds": time.perf_counter() - begin})
        for name, (location, streams) in contenders.items():
            command = [sys.executable, "-c", _CHILD, location, str(out), str(streams)]
            done = subprocess.run(
                command,
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"no_proxy": "127.0.0.1"},
            )
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
            shutil.rmtree(out)
        print(f"round {turn + 1} of {rounds} done, load {os.getloadavg()[0]:.1f}", flush=True)
    return results


def _report(results: dict[str, list[dict[str, float]]], num_bytes: int, num_images: int) -> None:
    """Print a line for each contender."""
    print(f"{'':<18} {'MB/s':>7} {'images/s':>9} {'peak MB':>8}   x sha256sum, each round")
    base = [turn["seconds"] for turn in results["sha256sum"]]
    for name, turns in results.items():
        seconds = [turn["seconds"] for turn in turns]
        median = statistics.median(seconds)
        peak = max(turn.get("peak_mb", 0.0) for turn in turns)
        ratios = "  ".join(f"{b / s:.2f}" for b, s in zip(base, seconds, strict=True))
        shown = f"{peak:>8,.0f}" if peak else f"{'':>8}"
        print(
            f"{name:<18} {num_bytes / 1e6 / median:>7,.0f} {num_images / median:>9,.0f} {shown}   "
            f"{ratios}"
        )


def _load_times(folder: Path, rounds: int) -> list[float]:
    """Write a manifest as large as ImageNet-1k's; return how many seconds each load takes."""
    folder.mkdir()
    count, num_shards = NUM_IMAGES[TRAIN], 1024
    rng = np.random.default_rng(0)
    sizes = np.diff(np.linspace(0, count, num_shards + 1).astype(int)).tolist()
    shards = tuple(
        Shard(f"imagenet1k-train-{number:04d}.tar", size, 147_000_000, f"{number:064x}")
        for number, size in enumerate(sizes)
    )
    labels = rng.integers(0, NUM_CLASSES, count).astype(np.int32)
    split = Split(
        shards=shards,
        offsets=rng.integers(0, 2**27, count),
        lengths=rng.integers(10_000, 500_000, count).astype(np.int32),
        labels=labels,
        keys=np.array([f"n{label:08d}_{i}" for i, label in enumerate(labels.tolist())], np.bytes_),
        crc32s=rng.integers(0, 2**32, count).astype(np.uint32),
    )
    Manifest("imagenet1k", {"indexed": True}, {TRAIN: split}).save(folder)
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        Manifest.load(folder)
        seconds.append(time.perf_counter() - begin)
    return seconds


if __name__ == "__main__":
    main()
