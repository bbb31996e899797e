"""Images/s and MB/s of packing, beside plain tar and webdataset's ShardWriter.

    python -m benchmarks.packing --images 20000 --rounds 3

All of them pack the same images and take turns, so that a change in the machine's speed meets all
alike. The images are crops of the two photographs that scikit-learn ships, about as large as
ImageNet's; they lie in the page cache before the first turn. Each time is that of the whole call:
for us with starting the workers, checksums, fsync, manifest and audit, which the others do not do.
Processor time, of all processes together, tells more where others use the machine too.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from imagenet_rn50.shards.lossless import is_installed
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.base import Source
from imagenet_rn50.shards.sources.detect import read_source

_NUM_CLASSES = 10
_NUM_DIFFERENT = 500  # images; further ones differ from them in a comment only
_QUALITY = 96  # at which they are about as large as ImageNet's
_SHARD_SIZE = 1251


@dataclass(frozen=True)
class Arguments:
    """Time packing by several means in turn."""

    images: int = 20_000
    """Images to pack where bytes are only passed on."""
    slow_images: int = 1_500
    """Images to pack where each is decoded or written anew."""
    rounds: int = 3
    """Turns of each."""
    folder: Path | None = None
    """Where to work; by default a temporary folder."""


def main() -> None:
    """Print the median images/s and MB/s of each, and its ratio to ShardWriter in each round."""
    arguments = tyro.cli(Arguments)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        many = _write_images(folder / "many", arguments.images)
        few = _write_images(folder / "few", arguments.slow_images)
        mean = statistics.mean(image.length for image in many.splits["train"])
        print(
            f"{os.cpu_count()} cores; {arguments.images} images of {mean / 1e3:.1f} KB on "
            f"average, {arguments.slow_images} where each is decoded; {arguments.rounds} rounds"
        )
        print(f"load of the machine before the first round: {os.getloadavg()[0]:.1f}", flush=True)
        import_module("webdataset")  # its import is not what is timed
        contestants = _contestants(many, few, folder / "out")
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        processor: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(arguments.rounds):
            for name, (_, run) in contestants.items():
                (folder / "out").mkdir()
                begin, begin_processor = time.perf_counter(), _processor_seconds()
                run()
                seconds[name].append(time.perf_counter() - begin)
                processor[name].append(_processor_seconds() - begin_processor)
                shutil.rmtree(folder / "out")
            print(
                f"round {turn + 1} of {arguments.rounds} done, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    _report({name: source for name, (source, _) in contestants.items()}, seconds, processor)


def _processor_seconds() -> float:
    """Return the processor time of this process and of those it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _write_images(root: Path, count: int) -> Source:
    """Write an ImageFolder of photographs and reads it once."""
    from sklearn.datasets import load_sample_images  # not above: each worker imports this file

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    crops: list[bytes] = []
    for number in range(count):
        path = root / "train" / f"n{number % _NUM_CLASSES:08d}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < _NUM_DIFFERENT:
            crops.append(_crop(photographs[number % 2], rng))
        # A comment makes each image another one.
        comment = b"\xff\xfe\0\x0a%08d" % number
        crop = crops[number % _NUM_DIFFERENT]
        path.write_bytes(crop[:2] + comment + crop[2:])
    return read_source(root, train_only=True)


def _crop(photograph: Image.Image, rng: np.random.Generator) -> bytes:
    """Return a JPEG of 500x375 px of a random part of a photograph."""
    side = rng.uniform(0.5, 1.0)
    width, height = int(photograph.width * side), int(photograph.height * side)
    left = int(rng.integers(0, photograph.width - width + 1))
    top = int(rng.integers(0, photograph.height - height + 1))
    buffer = io.BytesIO()
    crop = photograph.crop((left, top, left + width, top + height)).resize((500, 375))
    crop.save(buffer, format="JPEG", quality=_QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def _contestants(
    many: Source, few: Source, out: Path
) -> dict[str, tuple[Source, Callable[[], object]]]:
    """Return what takes turns: its images, and a call that packs them."""
    variants = {
        "ours, headers only": (many, PackOptions(check="header")),
        "ours, each decoded once": (few, PackOptions(train_shards=8)),
        "ours, restart markers": (few, PackOptions(train_shards=8, restart_blocks="auto")),
        "ours, resized short=256": (
            few,
            PackOptions(train_shards=8, restart_blocks="auto", resize="short=256"),
        ),
    }
    if not is_installed():
        del variants["ours, restart markers"]
    contestants: dict[str, tuple[Source, Callable[[], object]]] = {
        "tar": (many, lambda: _tar(many, out)),
        "ShardWriter": (many, lambda: _shard_writer(many, out, 1)),
        "ShardWriter, 2 processes": (many, lambda: _shard_writer(many, out, 2)),
    }
    for name, (source, options) in variants.items():
        for workers in (1, 2):
            contestants[f"{name}, {workers} workers"] = (
                source,
                lambda source=source, options=options, workers=workers: pack(  # type: ignore[misc]
                    source, out, options, num_workers=workers
                ),
            )
    return contestants


def _tar(source: Source, out: Path) -> None:
    """Pack with the system's tar, in one process into one file."""
    subprocess.run(["tar", "-cf", str(out / "all.tar"), "-C", str(source.root), "."], check=True)


def _shard_writer(source: Source, out: Path, num_processes: int) -> None:
    """Pack with webdataset's own writer; the processes share the images evenly."""
    parts = [source.splits["train"][i::num_processes] for i in range(num_processes)]
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_write_part, args=(source.root, part, out / f"{i}-%06d.tar"))
        for i, part in enumerate(parts)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def _write_part(root: Path, images: list[tuple[str, int, str, int, int]], pattern: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(str(pattern), maxcount=_SHARD_SIZE, verbose=0) as writer:
        for key, label, path, _, _ in images:
            writer.write({"__key__": key, "jpg": (root / path).read_bytes(), "cls": label})


def _report(
    sources: dict[str, Source], seconds: dict[str, list[float]], processor: dict[str, list[float]]
) -> None:
    """Print a line for each contestant."""
    rates = {
        name: [len(sources[name].splits["train"]) / s for s in times]
        for name, times in seconds.items()
    }
    columns = f"{'images/s':>9} {'MB/s':>7} {'CPU us/image':>13}"
    print(f"{'':<36} {columns}   x ShardWriter, each round")
    for name, rate in rates.items():
        mean = statistics.mean(image.length for image in sources[name].splits["train"])
        ratios = [r / base for r, base in zip(rate, rates["ShardWriter"], strict=True)]
        median = statistics.median(rate)
        shown = "  ".join(f"{ratio:.2f}" for ratio in ratios)
        cost = statistics.median(processor[name]) / len(sources[name].splits["train"]) * 1e6
        print(f"{name:<36} {median:>9,.0f} {median * mean / 1e6:>7,.1f} {cost:>13,.0f}   {shown}")


if __name__ == "__main__":
    main()
