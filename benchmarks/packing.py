"""Images/s and MB/s of packing, beside plain tar and webdataset's ShardWriter.

    python -m benchmarks.packing --images 20000 --rounds 3 --out benchmarks/results/packing

All of them pack the same images and take turns, in reversed order in every other round, so that a
change in the machine's speed meets all alike. The images are crops of the two photographs that
scikit-learn ships, as large as ImageNet's: 500x375 px at quality 96, 76% of them 4:4:4, 20% 4:2:0,
2% 4:2:2 and 2% gray, as in 1,000 training images of ImageNet. They lie in the page cache before the
first turn. Each time is that of the whole call: for us with starting the workers, checksums, fsync,
manifest and audit, which the others do not do. Processor time, of all processes together, tells
more where others use the machine too; images/s per core are those of one second of it.

"a jpegtran process each" is how restart markers were made before one child process made all of
them: every image decoded, then given to a process of its own. Both write the same bytes, or the
benchmark fails. "markers alone" leaves out all else, such as hashes, tars and the check of each
image.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tyro
from PIL import Image

from imagenet_rn50.jpeg.crop import suggested_interval, with_offset_table
from imagenet_rn50.jpeg.header import read_header
from imagenet_rn50.shards.images import Prepared, repair
from imagenet_rn50.shards.lossless import (
    PROGRAM,
    add_by_jpegtran,
    add_restart_markers,
    is_installed,
    shut_down,
)
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.base import Source, SourceImage
from imagenet_rn50.shards.sources.detect import read_source

_NUM_CLASSES = 10
_NUM_DIFFERENT = 500  # images; further ones differ from them in a comment only
_QUALITY = 96  # of 67% of ImageNet's images
_BEFORE, _AFTER = "ours, a jpegtran process each, 1 workers", "ours, restart markers, 1 workers"
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
    markers_only: bool = False
    """Leave out what makes no restart markers."""
    folder: Path | None = None
    """Where to work; by default a temporary folder."""
    out: Path | None = None
    """Where .txt and .json go."""


def main() -> None:
    """Print the median images/s and MB/s of each, and its ratio to ShardWriter in each round."""
    arguments = tyro.cli(Arguments)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        many = _write_images(folder / "many", arguments.images)
        few = _write_images(folder / "few", arguments.slow_images)
        load = os.getloadavg()[0]
        import_module("webdataset")  # its import is not what is timed
        contestants = _contestants(many, few, folder / "out")
        if arguments.markers_only:
            kept = (_BEFORE, _AFTER, *(name for name in contestants if name.startswith("markers")))
            contestants = {name: contestants[name] for name in kept}
        rounds = _run_rounds(contestants, arguments.rounds, folder / "out")
        sources = {name: source for name, (source, _) in contestants.items()}
    content = {
        "command": " ".join(["python -m benchmarks.packing", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{platform.machine()}, {_processor()}, {os.cpu_count()} cores",
        "load_before": round(load, 1),
        "versions": _versions(),
        "arguments": asdict(arguments) | {"folder": None, "out": None},
        "mean_image_bytes": statistics.mean(image.length for image in many.splits["train"]),
        "contestants": {name: _figures(sources[name], times) for name, times in rounds.items()},
    }
    report = _report(content)
    print(report, end="")
    if arguments.out is not None:
        arguments.out.with_suffix(".txt").write_text(report, encoding="utf-8")
        saved = json.dumps(content, indent=1) + "\n"
        arguments.out.with_suffix(".json").write_text(saved, encoding="utf-8")


def _run_rounds(
    contestants: dict[str, tuple[Source, Callable[[], object]]], num_rounds: int, out: Path
) -> dict[str, list[tuple[float, float]]]:
    """Return (seconds, seconds of processor time) of each contestant in each round."""
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    made: dict[str, object] = {}
    for turn in range(num_rounds):
        for name in list(contestants)[:: -1 if turn % 2 else 1]:
            out.mkdir()
            begin, begin_processor = time.perf_counter(), _processor_seconds()
            made[name] = contestants[name][1]()
            shut_down()  # the processor time of a child counts once it is gone
            seconds = time.perf_counter() - begin
            rounds[name].append((seconds, _processor_seconds() - begin_processor))
            shutil.rmtree(out)
        print(f"round {turn + 1} of {num_rounds} done", file=sys.stderr, flush=True)
    if _BEFORE in made and made[_BEFORE] != made[_AFTER]:
        raise RuntimeError("both ways to make restart markers must write the same bytes")
    return rounds


def _figures(source: Source, rounds: list[tuple[float, float]]) -> dict[str, object]:
    """Return the figures of one contestant."""
    num_images = len(source.splits["train"])
    rates = [num_images / seconds for seconds, _ in rounds]
    cpu = statistics.median(processor for _, processor in rounds) / num_images
    return {
        "num_images": num_images,
        "images_per_s": statistics.median(rates),
        "images_per_s_of_a_core": 1 / cpu,
        "cpu_us_per_image": cpu * 1e6,
        "images_per_s_by_round": rates,
        "cpu_us_per_image_by_round": [processor / num_images * 1e6 for _, processor in rounds],
    }


def _processor() -> str:
    """Return the name of the processor, where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "processor not known"


def _versions() -> dict[str, str]:
    """Return the versions of what is compared."""
    found = {name: version(name) for name in ("pillow", "simplejpeg", "webdataset")}
    if is_installed():
        done = subprocess.run([PROGRAM, "-version"], capture_output=True, text=True, check=False)
        found[PROGRAM] = (done.stdout + done.stderr).strip()
    return {"python": platform.python_version(), **found}


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
            crops.append(_crop(photographs[number % 2], rng, _subsampling(number)))
        # A comment makes each image another one.
        comment = b"\xff\xfe\0\x0a%08d" % number
        crop = crops[number % _NUM_DIFFERENT]
        path.write_bytes(crop[:2] + comment + crop[2:])
    return read_source(root, train_only=True)


def _subsampling(number: int) -> str:
    """Return the subsampling of an image, in the shares of ImageNet's."""
    place = number % 50
    if place == 0:
        return "gray"
    return "4:2:2" if place == 1 else "4:2:0" if place < 12 else "4:4:4"


def _crop(photograph: Image.Image, rng: np.random.Generator, subsampling: str) -> bytes:
    """Return a JPEG of 500x375 px of a random part of a photograph."""
    side = rng.uniform(0.5, 1.0)
    width, height = int(photograph.width * side), int(photograph.height * side)
    left = int(rng.integers(0, photograph.width - width + 1))
    top = int(rng.integers(0, photograph.height - height + 1))
    buffer = io.BytesIO()
    crop = photograph.crop((left, top, left + width, top + height)).resize((500, 375))
    if subsampling == "gray":
        crop.convert("L").save(buffer, format="JPEG", quality=_QUALITY)
    else:
        crop.save(buffer, format="JPEG", quality=_QUALITY, subsampling=subsampling)
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
        "ours, recoded at 90": (
            few,
            PackOptions(train_shards=8, restart_blocks="auto", recode=90),
        ),
    }
    if not is_installed():
        variants = {name: (s, replace(o, restart_blocks=None)) for name, (s, o) in variants.items()}
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
                partial(_pack, source, out, options, workers),
            )
    if is_installed():
        contestants[_BEFORE] = (few, lambda: _pack_by_jpegtran(few, out))
        contestants["markers alone, a jpegtran process each"] = (
            few,
            lambda: _mark(few, add_by_jpegtran),
        )
        contestants["markers alone"] = (few, lambda: _mark(few, add_restart_markers))
    return contestants


def _prepare_by_jpegtran(raw: bytes, options: PackOptions) -> Prepared:
    """Decode an image, then have a process of its own add restart markers."""
    prepared = repair(raw, options)
    return replace(prepared, jpeg=with_offset_table(add_by_jpegtran(raw, _interval(raw))))


def _interval(jpeg: bytes) -> int:
    header = read_header(jpeg, strict=True)
    assert header.mcu is not None
    return suggested_interval(header.grid[1], header.mcu[1])


def _pack(source: Source, out: Path, options: PackOptions, num_workers: int) -> list[str]:
    """Pack and return the sha256 of each shard."""
    manifest = pack(source, out, options, num_workers=num_workers).manifest
    return [shard.sha256 for shard in manifest.split("train").shards]


def _pack_by_jpegtran(source: Source, out: Path) -> list[str]:
    """Pack with one `jpegtran` process for each image."""
    options = PackOptions(train_shards=8, restart_blocks="auto")
    with mock.patch("imagenet_rn50.shards.writer.prepare", _prepare_by_jpegtran):
        return _pack(source, out, options, 1)


def _mark(source: Source, add: Callable[[bytes, int], bytes]) -> None:
    """Add restart markers to each image and throw it away."""
    for image in source.splits["train"]:
        raw = (Path(source.root) / image.path).read_bytes()
        add(raw, _interval(raw))


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
        if process.exitcode != 0:
            raise RuntimeError(f"ShardWriter failed with exit code {process.exitcode}")


def _write_part(root: Path, images: Sequence[SourceImage], pattern: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(str(pattern), maxcount=_SHARD_SIZE, verbose=0) as writer:
        for image in images:
            content = (root / image.path).read_bytes()
            writer.write({"__key__": image.key, "jpg": content, "cls": image.label})


def _report(content: dict[str, Any]) -> str:
    """Return a line for each contestant, and the ratios of the two ways to make markers."""
    contestants, arguments = content["contestants"], content["arguments"]
    mean = content["mean_image_bytes"]
    lines = [
        content["command"],
        f"{content['date']}; {content['machine']}; load before the first round: "
        f"{content['load_before']}",
        ", ".join(f"{name} {number}" for name, number in content["versions"].items()),
        f"{arguments['images']} images of {mean / 1e3:.1f} KB on average, "
        f"{arguments['slow_images']} where each is decoded; {arguments['rounds']} rounds, medians",
        "",
        f"{'':<42} {'images/s':>9} {'MB/s':>7} {'CPU us/image':>13} {'images/s per core':>18}",
    ]
    for name, found in contestants.items():
        rate, cpu = found["images_per_s"], found["cpu_us_per_image"]
        line = f"{name:<42} {rate:>9,.0f} {rate * mean / 1e6:>7,.1f} {cpu:>13,.0f} "
        lines.append(f"{line}{found['images_per_s_of_a_core']:>18,.0f}")
    if "ShardWriter" in contestants:
        lines += ["", "images/s, x ShardWriter in each round"]
        base = contestants["ShardWriter"]["images_per_s_by_round"]
        for name, found in contestants.items():
            ratios = _ratios(found["images_per_s_by_round"], base)
            lines.append(f"{name:<42} {_shown(ratios)}")
    pairs = ((_AFTER, _BEFORE), ("markers alone", "markers alone, a jpegtran process each"))
    for after, before in pairs:
        if before in contestants:
            lines += ["", f"{after} / {before}, in each round"]
            ratios = _ratios(*(contestants[n]["images_per_s_by_round"] for n in (after, before)))
            lines.append(f"{'images/s':<42} {_shown(ratios)}")
            ratios = _ratios(
                *(contestants[n]["cpu_us_per_image_by_round"] for n in (before, after))
            )
            lines.append(f"{'images/s per core':<42} {_shown(ratios)}")
    return "\n".join(lines) + "\n"


def _ratios(rates: list[float], base: list[float]) -> list[float]:
    return [rate / other for rate, other in zip(rates, base, strict=True)]


def _shown(ratios: list[float]) -> str:
    median = statistics.median(ratios)
    return f"{median:>9.2f}   ({'  '.join(f'{ratio:.2f}' for ratio in ratios)})"


if __name__ == "__main__":
    main()
