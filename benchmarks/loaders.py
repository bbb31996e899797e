"""Images/s of our loader beside the loaders that people use, interleaved in one run.

    python -m benchmarks.loaders --peers-python P --mosaic-python M --ffcv-python F
    python -m benchmarks.loaders --only DALI FFCV --peers-python P --ffcv-python F    some of them

Every loader reads the same photos, each from its own format, in a process of its own. They take
turns, in reversed order in every other round: what else the machine does meets all alike, so ratios
within a round are what to look at. Beside each loader runs ours with the same bytes: those of the
same JPEGs, or re-encoded and resized as its format does (`_LOADERS`). A slow drift of the machine
would favor the one or the other in a single round, and not in two.

benchmarks/requirements-loaders.txt says what the three other environments hold; a loader whose
environment is not named is left out. Table, JSON and plot go to benchmarks/results/.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import tyro

from benchmarks.loader_data import IMAGENET, compare, mean_kb, photos_of, statistics

ROOT = Path(__file__).parents[1]
OURS, OURS_AS_IS = "ours", "ours, no markers"
OURS_RECODED, OURS_500 = "ours, re-encoded", "ours, 500 px"
_FIGURES = ("images_per_s", "ratio", "cpu_ms", "cpu_ratio", "first_batch_s", "peak_mb", "kb")


class _Loader(NamedTuple):
    """What is timed.

    Attributes:
        environment: Whose Python runs it.
        data_format: What it reads.
        ours: Which loader of ours has the same bytes.
        meaning: What its format does to pixels and size.
    """

    environment: str
    data_format: str
    ours: str
    meaning: str


_SAME = "the JPEGs as they are: no pixel and no byte changes"
_LOADERS = {
    OURS: _Loader(
        "own", "restarts", OURS, "restart markers, written without loss: no pixel changes"
    ),
    OURS_AS_IS: _Loader("own", "shards", OURS, _SAME),
    OURS_RECODED: _Loader(
        "own",
        "recoded",
        OURS_RECODED,
        "re-encoded at quality 90 in 4:2:0, size kept, with restart markers: pixels change, color "
        "has a quarter of the resolution",
    ),
    OURS_500: _Loader(
        "own",
        "recoded500",
        OURS_500,
        "re-encoded likewise, and resized where the longer side exceeds 500 px",
    ),
    "ImageFolder": _Loader("own", "photos", OURS, f"{_SAME}; Pillow decodes, float32 out"),
    "webdataset": _Loader("own", "shards", OURS, f"{_SAME}; Pillow decodes, float32 out"),
    "datasets": _Loader("own", "shards", OURS, f"{_SAME}; Pillow decodes, uint8 out"),
    "mosaicml-streaming": _Loader("mosaic", "mds", OURS, f"{_SAME}; Pillow decodes, uint8 out"),
    "litdata": _Loader("peers", "litdata", OURS, f"{_SAME}; Pillow decodes, uint8 out"),
    "torchcodec": _Loader("peers", "photos", OURS, f"{_SAME}; TorchCodec decodes, uint8 out"),
    "SPDL": _Loader(
        "peers",
        "photos",
        OURS,
        f"{_SAME}; FFmpeg decodes and scales bicubically with its own filters, uint8 out",
    ),
    "DALI": _Loader(
        "peers", "shards", OURS, f"{_SAME}; libjpeg-turbo decodes, triangular filter, uint8 out"
    ),
    "DALI, markers": _Loader("peers", "restarts", OURS, "the very files that ours reads"),
    "FFCV": _Loader(
        "ffcv",
        "ffcv",
        OURS_RECODED,
        "its writer re-encodes at quality 90 in 4:2:0, gray as color, size kept: pixels change; "
        "its resize takes the mean over the area",
    ),
    "FFCV, 500 px": _Loader(
        "ffcv",
        "ffcv500",
        OURS_500,
        "re-encoded likewise, and resized where the longer side exceeds 500 px",
    ),
}

Rounds = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Arguments:
    """Time loaders in turn."""

    data: Path = Path("data/bench-loaders")
    """Where the photos and their formats are kept; some GB."""
    photos: int = 2560
    """How many."""
    batch: int = 128
    """Images in a batch."""
    batches: int = 50
    """Timed batches of each loader and round, after its first and two more."""
    workers: int = 2
    """Processes, or threads, of each loader."""
    rounds: int = 5
    """Turns of each loader."""
    peers_python: Path | None = None
    """Python of the environment with litdata, DALI, SPDL and TorchCodec."""
    mosaic_python: Path | None = None
    """Python of the environment with mosaicml-streaming."""
    ffcv_python: Path | None = None
    """Python of the environment with FFCV."""
    only: tuple[str, ...] = ()
    """Names of the loaders to time, beside those of ours with the same bytes; all by default."""
    prepare_only: bool = False
    """Write the photos and their formats, and time nothing."""
    out: Path = ROOT / "benchmarks" / "results" / "loaders"
    """Where .txt, .json and .png go."""


def main() -> None:
    """Print and save medians over the rounds."""
    arguments = tyro.cli(Arguments)
    pythons = {
        "own": Path(sys.executable),
        "peers": arguments.peers_python,
        "mosaic": arguments.mosaic_python,
        "ffcv": arguments.ffcv_python,
    }
    contenders = _contenders(arguments.only, pythons)
    own = Path(sys.executable)
    _run(own, ["benchmarks.loader_data", "photos", str(arguments.data), str(arguments.photos)])
    for name, python in contenders.items():
        data_format = _LOADERS[name].data_format
        print(f"preparing {data_format} for {name}", flush=True)
        _run(python, ["benchmarks.loader_data", data_format, str(arguments.data)])
    if arguments.prepare_only:
        return
    rounds: Rounds = {name: [] for name in contenders}
    numbers = [str(n) for n in (arguments.batch, arguments.workers, arguments.batches)]
    for turn in range(arguments.rounds):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            module = ["benchmarks.loader_contenders", name, str(arguments.data), *numbers]
            line = _run(contenders[name], module).strip().splitlines()[-1]
            rounds[name].append(json.loads(line))
            print(f"round {turn + 1}  {name:<20} {line}", flush=True)
    _report(arguments, rounds)


def _contenders(only: tuple[str, ...], pythons: dict[str, Path | None]) -> dict[str, Path]:
    """Return the Python of each loader that can be timed, each of ours beside its first peer."""
    contenders: dict[str, Path] = {}
    for name, loader in _LOADERS.items():
        if only and name not in only:
            continue
        for wanted in (loader.ours, name):
            python = pythons[_LOADERS[wanted].environment]
            if python is not None and pythons[loader.environment] is not None:
                contenders.setdefault(wanted, python)
    return contenders


def run_metadata(module: str) -> dict[str, Any]:
    """Return how, when and on what a benchmark runs, to be saved with its figures."""
    words = list(sys.argv[1:])
    while (
        at := next((n for n, word in enumerate(words) if word.startswith("/")), None)
    ) is not None:
        del words[at - 1 : at + 1]  # where data and environments lie on this machine
    return {
        "command": shlex.join(["python", "-m", module, *words]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "numpy", "simplejpeg")},
    }


def describe_run(metadata: dict[str, Any]) -> str:
    """Return `run_metadata` as lines of text."""
    versions = ", ".join(f"{name} {number}" for name, number in metadata["versions"].items())
    return f"{metadata['command']}\n{metadata['date']}, {metadata['machine']}, {versions}"


def _processor() -> str:
    """Return the name of this machine's processor, as far as it is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _run(python: Path, module: list[str]) -> str:
    """Run a module of ours with some Python; return what it printed."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [str(python), "-m", *module],
        cwd=Path.cwd(),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(module)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _report(arguments: Arguments, rounds: Rounds) -> None:
    """Print the table and save it with the JSON and the plot."""
    table = _table(arguments.data, rounds)
    photos = statistics([path.read_bytes() for path, _ in photos_of(arguments.data)])
    made_by = run_metadata("benchmarks.loaders")
    versions = {name: measured[0]["versions"] for name, measured in rounds.items()}
    lines = [
        describe_run(made_by),
        f"{arguments.photos} photos, batch {arguments.batch}, {arguments.batches} timed batches, "
        f"{arguments.workers} workers, {arguments.rounds} rounds, reversed in every other one",
        "medians; ratio: images/s of ours with the same bytes to its; cpu_ratio: CPU time of its "
        "to ours; both in the same round. kb: mean size of an image",
        "",
        f"{'loader':<20}" + "".join(f"{figure:>15}" for figure in _FIGURES) + "   beside",
    ]
    for name, row in table.items():
        figures = "".join(f"{row[figure]:>15.2f}" for figure in _FIGURES)
        lines.append(f"{name:<20}{figures}   {_LOADERS[name].ours}")
    lines += ["", "What each format does:"]
    for name in table:
        packages = ", ".join(f"{package} {number}" for package, number in versions[name].items())
        lines.append(f"  {name} ({packages}): {_LOADERS[name].meaning}")
    text = "\n".join(lines) + f"\n\n{compare(photos)}"
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".txt").write_text(text, encoding="utf-8")
    content = {
        **made_by,
        "arguments": {k: v for k, v in asdict(arguments).items() if not isinstance(v, Path)},
        "loaders": {
            name: {"beside": _LOADERS[name].ours, "format": _LOADERS[name].meaning}
            | {"versions": versions[name]}
            for name in table
        },
        "photos": photos,
        "photos_of_imagenet": IMAGENET,
        "medians": table,
        "rounds": rounds,
    }
    saved = json.dumps(content, indent=1) + "\n"
    arguments.out.with_suffix(".json").write_text(saved, encoding="utf-8")
    _plot(arguments.out.with_suffix(".png"), table)


def _table(data: Path, rounds: Rounds) -> dict[str, dict[str, float]]:
    """Return each loader's medians, and how many times as fast ours is, round by round."""
    table = {}
    for name, measured in rounds.items():
        row = {
            key: median(one[key] for one in measured) for key in measured[0] if key != "versions"
        }
        pairs = list(zip(rounds[_LOADERS[name].ours], measured, strict=True))
        row["ratio"] = median(ours["images_per_s"] / one["images_per_s"] for ours, one in pairs)
        row["cpu_ratio"] = median(one["cpu_ms"] / ours["cpu_ms"] for ours, one in pairs)
        row["kb"] = mean_kb(data, _LOADERS[name].data_format)
        table[name] = row
    return table


def _plot(path: Path, table: dict[str, dict[str, float]]) -> None:
    """Draw images/s as bars."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    names = sorted(table, key=lambda name: table[name]["images_per_s"])
    speeds: list[Any] = [table[name]["images_per_s"] for name in names]
    figure, axes = pyplot.subplots(figsize=(7, 0.4 * len(names) + 1), layout="constrained")
    colours = ["tab:blue" if name.startswith("ours") else "tab:gray" for name in names]
    axes.bar_label(axes.barh(names, speeds, color=colours), fmt="%.0f", padding=3)
    axes.set_xlabel("images/s")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
