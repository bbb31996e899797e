"""Images/s of our loader beside the loaders that people use, interleaved in one run.

    python -m benchmarks.loaders --rounds 3 --peers-python P --mosaic-python M --ffcv-python F

Every loader reads the same photos, each from its own format, in a process of its own, and they take
turns: what else the machine does meets all alike, so ratios within a round are what to look at.
benchmarks/requirements-loaders.txt says what the three other environments hold; a loader whose
environment is not named is left out. Table, JSON and plot go to benchmarks/results/.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tyro

ROOT = Path(__file__).parents[1]
OURS, OURS_RESIZED = "ours", "ours, 500 px"
_RESIZED = {OURS_RESIZED, "FFCV, 500 px"}
_OWN = {
    "ours": "restarts",
    "ours, no markers": "shards",
    "ours, 500 px": "restarts500",
    "ImageFolder": "photos",
    "webdataset": "shards",
    "datasets": "shards",
}
_PEERS = {"litdata": "litdata", "DALI": "shards"}
_MOSAIC = {"mosaicml-streaming": "mds"}
_FFCV = {"FFCV": "ffcv", "FFCV, 500 px": "ffcv500"}
_FIGURES = ("images_per_s", "ratio", "cpu_ms", "cpu_ratio", "first_batch_s", "peak_mb")

Rounds = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Arguments:
    """Time loaders in turn."""

    data: Path = Path("data/bench-loaders")
    """Where the photos and their formats are kept; some hundred MB."""
    photos: int = 3840
    """How many."""
    batch: int = 128
    """Images in a batch."""
    batches: int = 24
    """Timed batches of each loader and round, after its first."""
    workers: int = 2
    """Processes, or threads, of each loader."""
    rounds: int = 3
    """Turns of each loader."""
    peers_python: Path | None = None
    """Python of the environment with litdata and DALI."""
    mosaic_python: Path | None = None
    """Python of the environment with mosaicml-streaming."""
    ffcv_python: Path | None = None
    """Python of the environment with FFCV."""
    only: tuple[str, ...] = ()
    """Names of the loaders to time; all by default."""
    out: Path = ROOT / "benchmarks" / "results" / "loaders"
    """Where .txt, .json and .png go."""


def main() -> None:
    """Print and save medians over the rounds."""
    arguments = tyro.cli(Arguments)
    contenders = _contenders(arguments)
    own = Path(sys.executable)
    _run(own, ["benchmarks.loader_data", "photos", str(arguments.data), str(arguments.photos)])
    for name, (python, data_format) in contenders.items():
        print(f"preparing {data_format} for {name}", flush=True)
        _run(python, ["benchmarks.loader_data", data_format, str(arguments.data)])
    rounds: Rounds = {name: [] for name in contenders}
    numbers = [str(n) for n in (arguments.batch, arguments.workers, arguments.batches)]
    for turn in range(arguments.rounds):
        for name, (python, _) in contenders.items():
            module = ["benchmarks.loader_contenders", name, str(arguments.data), *numbers]
            line = _run(python, module).strip().splitlines()[-1]
            rounds[name].append(json.loads(line))
            print(f"round {turn + 1}  {name:<20} {line}", flush=True)
    _report(arguments, rounds)


def _contenders(arguments: Arguments) -> dict[str, tuple[Path, str]]:
    """Return Python and data format of each loader that can be timed."""
    groups = (
        (Path(sys.executable), _OWN),
        (arguments.peers_python, _PEERS),
        (arguments.mosaic_python, _MOSAIC),
        (arguments.ffcv_python, _FFCV),
    )
    return {
        name: (python, data_format)
        for python, formats in groups
        for name, data_format in formats.items()
        if python is not None and (not arguments.only or name in arguments.only)
    }


def _run(python: Path, module: list[str]) -> str:
    """Run a module of ours with some Python; return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
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
    table = _table(rounds)
    title = (
        f"{arguments.photos} photos, batch {arguments.batch}, {arguments.workers} workers, "
        f"{arguments.rounds} rounds, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    lines = [
        title,
        "medians; ratios: images/s of ours to its, CPU time of its to ours, "
        "in the same round (500 px: ours of 500 px)",
        "",
    ]
    lines.append(f"{'loader':<20}" + "".join(f"{figure:>15}" for figure in _FIGURES))
    for name, row in table.items():
        lines.append(f"{name:<20}" + "".join(f"{row[figure]:>15.2f}" for figure in _FIGURES))
    text = "\n".join(lines) + "\n"
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".txt").write_text(text, encoding="utf-8")
    content = {
        "arguments": {k: v for k, v in asdict(arguments).items() if not isinstance(v, Path)},
        "medians": table,
        "rounds": rounds,
    }
    saved = json.dumps(content, indent=1) + "\n"
    arguments.out.with_suffix(".json").write_text(saved, encoding="utf-8")
    _plot(arguments.out.with_suffix(".png"), table)


def _table(rounds: Rounds) -> dict[str, dict[str, float]]:
    """Return each loader's medians, and how many times as fast ours is, round by round."""
    table = {}
    for name, measured in rounds.items():
        row = {key: median(one[key] for one in measured) for key in measured[0]}
        reference = rounds.get(OURS_RESIZED if name in _RESIZED else OURS, measured)
        row["ratio"] = median(
            ours["images_per_s"] / one["images_per_s"]
            for ours, one in zip(reference, measured, strict=True)
        )
        row["cpu_ratio"] = median(
            one["cpu_ms"] / ours["cpu_ms"] for ours, one in zip(reference, measured, strict=True)
        )
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
