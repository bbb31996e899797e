"""Everything that needs a GPU to be proven, on one CUDA device, in under nine minutes.

    pip install -r benchmarks/requirements-gpu.txt     beside a PyTorch that sees the GPU
    python -m benchmarks.gpu                           writes benchmarks/results/gpu-<device>.*
    python -m benchmarks.gpu --sections eager loader   some of it, in place of the earlier results

Each section is a process of its own, so that one that fails or runs out of memory takes nothing
with it, and is written as soon as it is measured. What the time does not suffice for is printed as
not run, and can be measured later: the results of some sections replace those in the device's file,
if it comes from the same versions.

    roofline    bandwidth of copies, BatchNorm and ReLU; rate of a matrix product
    batch       the largest micro batch that fits
    eager       the training step against a plain torchvision loop and timm's ResNet-50
    loop        `Trainer.train` against its bare step, both with the loader
    loader      images/s with 4, 8 and 16 workers, beside those of one batch in GPU memory
    resume      a run and one that stopped and resumed; how long a save stops training
    evaluation  images/s of validation
    tests       pytest -m gpu
    compiled    as eager, with torch.compile; compilation takes most of the time
    breakdown   what the GPU does during a step
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import accelerate
import timm
import torch
import torchvision
import transformers
import tyro

from benchmarks import gpu_report, gpu_sections

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_EXIT_NO_GPU = 2
_LEAST_SECONDS = 10.0  # a section that has less is not started

Section = Literal[
    "roofline",
    "batch",
    "eager",
    "loop",
    "loader",
    "resume",
    "evaluation",
    "tests",
    "compiled",
    "breakdown",
]
SECTIONS: tuple[Section, ...] = get_args(Section)


@dataclass(frozen=True)
class Arguments:
    """Measure training on one CUDA device."""

    sections: tuple[Section, ...] = SECTIONS
    """What to measure. Some sections replace those of the device's earlier results."""
    minutes: float = 8.5
    """Longest time of all sections together."""
    settings: gpu_sections.Settings = gpu_sections.Settings()
    """Sizes of the measurements."""
    out: Path = RESULTS
    """Folder for the results."""


def main() -> None:
    """Run the sections; print and write what they measured."""
    arguments = tyro.cli(Arguments)
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA device, and PyTorch finds none", file=sys.stderr)
        raise SystemExit(_EXIT_NO_GPU)
    os.chdir(ROOT)
    began = time.monotonic()
    gpu_sections.prepare(arguments.settings)
    print(f"shards: {time.monotonic() - began:.0f} s", flush=True)
    results: dict[str, Any] = {"about": _about(), "sections": {}, "not_run": {}}
    path = arguments.out / f"gpu-{_file_name(results['about']['device'])}.json"
    whole = set(arguments.sections) == set(SECTIONS)
    earlier = None if whole else _earlier(path, results["about"])
    if whole:
        results["sections"] = {name: [] for name in SECTIONS}
        results["not_run"] = dict.fromkeys(SECTIONS, "the benchmark was ended before")
    micro_batch = arguments.settings.batch
    for section in arguments.sections:
        left = arguments.minutes * 60 - (time.monotonic() - began)
        settings = arguments.settings.with_micro_batch(micro_batch)
        rows, problem = _run_section(section, settings, left)
        results["sections"][section] = rows
        results["not_run"].pop(section, None)
        if problem:
            results["not_run"][section] = problem
        micro_batch = next((r["micro_batch"] for r in rows if section == "batch"), micro_batch)
        print(gpu_report.section_text(section, rows, problem), flush=True)
        results["about"]["seconds"] = round(time.monotonic() - began)
        if whole or earlier:
            _write(merged(earlier, results) if earlier else results, path)


def _run_section(
    section: str, settings: gpu_sections.Settings, left: float
) -> tuple[list[dict[str, Any]], str | None]:
    """Run a section in a process; return its rows, and why some are missing."""
    if left < _LEAST_SECONDS:
        return [], "no time was left"
    began, rows = time.monotonic(), []
    command = [sys.executable, "-m", "benchmarks.gpu_sections", section, f"{left:.0f}"]
    process = subprocess.Popen(
        [*command, settings.to_json()], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(gpu_sections.ROW):
            rows.append(json.loads(line.removeprefix(gpu_sections.ROW)))
        else:
            print(f"  {line.rstrip()}", flush=True)
    code = process.wait()
    print(f"({section}: {time.monotonic() - began:.0f} s)", flush=True)
    if code == 0:
        return rows, None
    return (
        rows,
        "time was up" if code == gpu_sections.EXIT_TIME_UP else f"failed with exit code {code}",
    )


def _about() -> dict[str, Any]:
    """Describe machine, versions and date."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "device": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "timm": timm.__version__,
    }


def _file_name(device: str) -> str:
    """Return a device's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _earlier(path: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """Return the device's earlier results, if they come from the same machine and versions."""
    if not path.is_file():
        print(f"nothing will be written: {path} with the other sections is missing", flush=True)
        return None
    earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = earlier["about"].keys() & about.keys() - {"command", "date"}
    if different := sorted(name for name in same if earlier["about"][name] != about[name]):
        print(f"nothing will be written: {path} has another {', '.join(different)}", flush=True)
        return None
    return earlier


def _write(results: dict[str, Any], path: Path) -> None:
    """Write the results as JSON and as text."""
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".txt").write_text(gpu_report.text(results), encoding="utf-8")


def merged(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Return results in which the sections of a later run replace those of an earlier one."""
    about = later["about"]
    again = f"{about['command']}, {about['date']}, {about['seconds']} s"
    return {
        "about": earlier["about"] | {"later": [*earlier["about"].get("later", []), again]},
        "sections": earlier["sections"] | later["sections"],
        "not_run": {
            name: why for name, why in earlier["not_run"].items() if name not in later["sections"]
        }
        | later["not_run"],
    }


if __name__ == "__main__":
    main()
