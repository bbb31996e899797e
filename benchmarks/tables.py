"""Tables of the documentation, made from benchmarks/results/ and by `estimate`, and never typed.

    python -m benchmarks.tables            writes them into the pages below
    python -m benchmarks.tables --check    exits with code 1 if one of them is not as it would be

A page has `<!-- table NAME -->` where a table begins and `<!-- end -->` where it ends.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from imagenet_rn50.recipe import load_recipe
from imagenet_rn50.tools.estimate import Options, duration, make_estimate
from imagenet_rn50.tools.estimate_report import dollars, hours_text
from imagenet_rn50.tools.plan import PlanOptions, format_plan, make_plan
from imagenet_rn50.tools.prices import load_prices
from imagenet_rn50.tools.recipe_headers import IMAGENET_1K, published_data
from imagenet_rn50.tools.recipe_table import format_recipes, recipe_rows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / name
        for name in ("ec2.md", "performance.md", "recipes.md", "where_to_run.md")
    ),
)
_TABLE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = dict[str, Any]


def filled(page: str) -> str:
    """Return a page with its tables made anew.

    Args:
        page: Markdown.

    Raises:
        KeyError: If it has a table that nobody makes.
    """
    return _TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", page)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _gpus() -> list[dict[str, Any]]:
    """Return the results of `benchmarks.gpu` of every device."""
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(RESULTS.glob("gpu-*"))
        if path.suffix == ".json"
    ]


def _rows(results: dict[str, Any], section: str) -> list[Row]:
    found: list[Row] = results["sections"].get(section, [])
    return found


def _source(about: dict[str, Any]) -> str:
    """Return where a result comes from, for the line below a table."""
    return (
        f"`{about['command']}`, {about['date']}, {about['device']}, {about['cores']} CPU cores, "
        f"torch {about['torch']}"
    )


def gpu_steps() -> str:
    """Return images/s and MFU of the training step, eager and compiled, beside the peers' step."""
    parts = []
    for gpu in _gpus():
        rows = [*_rows(gpu, "eager"), *_rows(gpu, "compiled")]
        rates = {(r["mode"], r["precision"], r["size"], r["contender"]): r for r in rows}
        lines = []
        for (mode, precision, size, contender), row in rates.items():
            if contender != "ours":
                continue
            peers = [rates.get((mode, precision, size, name)) for name in ("torchvision", "timm")]
            ratios = [
                f"{row['images_per_second'] / peer['images_per_second']:.3f}" if peer else "-"
                for peer in peers
            ]
            lines.append(
                (
                    f"{mode}, {precision}",
                    f"{size}",
                    f"{row['images_per_second']:,.0f}",
                    f"{row['tflops']:.0f}",
                    f"{row['mfu']:.1%}" if "mfu" in row else "-",
                    *ratios,
                )
            )
        head = ("step", "px", "images/s", "TFLOP/s", "MFU", "x torchvision's", "x timm's")
        batch = f"Micro batch {rows[0]['batch']}. " if rows else ""
        parts.append(f"{_markdown(head, lines)}\n\n{batch}{_source(gpu['about'])}")
    return "\n\n".join(parts)


def gpu_roofline() -> str:
    """Return what the device reaches in single operations."""
    parts = []
    for gpu in _gpus():
        rows = _rows(gpu, "roofline")
        copy = next(row["gb_per_second"] for row in rows if row["name"] == "copy")
        lines = [
            (row["name"], f"{row['gb_per_second']:,.0f} GB/s", f"{row['gb_per_second'] / copy:.0%}")
            if "gb_per_second" in row
            else (row["name"], f"{row['tflops']:,.0f} TFLOP/s", "-")
            for row in rows
        ]
        head = ("operation", "rate", "of a copy's")
        parts.append(f"{_markdown(head, lines)}\n\n{_source(gpu['about'])}")
    return "\n\n".join(parts)


def gpu_breakdown() -> str:
    """Return the share of each kind of kernel in a step."""
    parts = []
    for gpu in _gpus():
        rows = [row for row in _rows(gpu, "breakdown") if "kind" in row]
        modes = list(dict.fromkeys(row["mode"] for row in rows))
        kinds = list(dict.fromkeys(row["kind"] for row in rows))
        times = {(row["mode"], row["kind"]): row["ms"] for row in rows}
        lines = [
            (
                kind,
                *(f"{times[mode, kind]:.1f}" if (mode, kind) in times else "-" for mode in modes),
            )
            for kind in sorted(kinds, key=lambda kind: kind.startswith("step"))  # the sum is last
        ]
        head = ("ms of a step", *modes)
        parts.append(f"{_markdown(head, lines)}\n\n{_source(gpu['about'])}")
    return "\n\n".join(parts)


def gpu_loop() -> str:
    """Return what surrounds the step: loop, loader, saves, resume, validation."""
    parts = []
    for gpu in _gpus():
        lines = []
        rates = {
            kind: [r["images_per_second"] for r in _rows(gpu, "loop") if r["kind"] == kind]
            for kind in ("bare", "whole")
        }
        if all(rates.values()):
            bare, whole = (sum(values) / len(values) for values in rates.values())
            lines.append(("time of the whole loop over the bare step", f"{bare / whole - 1:+.1%}"))
        loader = _rows(gpu, "loader")
        synthetic = [r["images_per_second"] for r in loader if r["data"] == "synthetic"]
        lines += [
            (
                f"images/s with {row['workers']} loader workers",
                f"{row['images_per_second']:,.0f}, "
                f"{row['images_per_second'] / synthetic[0]:.1%} of one batch in memory",
            )
            for row in loader
            if row["data"] == "loader"
        ]
        for row in _rows(gpu, "resume"):
            if "hashes_equal" in row:
                same = "equal" if row["hashes_equal"] else "different"
                lines.append(
                    (
                        "resumed run: sample hashes, losses",
                        f"{same}, within {row['loss_difference']:.2%}",
                    )
                )
        stalls = [1e3 * r["stall_seconds"] for r in _rows(gpu, "resume") if "save" in r]
        if stalls:
            lines.append(
                ("a save stops training for, ms", ", ".join(f"{stall:.0f}" for stall in stalls))
            )
        lines += [
            ("validation, images/s", f"{row['num_images'] / row['seconds']:,.0f}")
            for row in _rows(gpu, "evaluation")
        ]
        parts.append(f"{_markdown(('', ''), lines)}\n\n{_source(gpu['about'])}")
    return "\n\n".join(parts)


def loaders() -> str:
    """Return images/s of each loader beside ours with the same bytes."""
    found = _read("loaders.json")
    lines = []
    for name, row in found["medians"].items():
        about = found["loaders"][name]
        lines.append(
            (
                name,
                about["format"],
                f"{row['kb']:.0f}",
                f"{row['images_per_s']:,.0f}",
                "" if about["beside"] == name else f"{row['ratio']:.2f}",
            )
        )
    head = ("loader", "what it reads", "KB", "images/s", "x")
    of = found["arguments"]
    note = (
        f"Batch {of['batch']}, {of['workers']} workers or threads, medians of {of['rounds']} "
        f"rounds of {of['batches']} batches. {_benchmark(found)}"
    )
    return f"{_markdown(head, lines)}\n\n{note}"


def worker_scaling() -> str:
    """Return images/s of a worker for each number of workers."""
    found = _read("worker_scaling.json")
    lines = [
        (
            f"{row['wait_ms']:g} ms",
            f"{row['workers']}",
            f"{row['images_per_s']:,.0f}",
            f"{row['of_2']:.0%}",
            f"{row['cpu_ms']:.3f}",
            f"{row['cores_used']:.2f}",
            f"{row['first_batch_s']:.1f}",
        )
        for row in found["rows"]
    ]
    head = (
        "an image takes",
        "workers",
        "images/s",
        "per worker, of that with 2",
        "CPU ms per image",
        "cores in use",
        "first batch, s",
    )
    return f"{_markdown(head, lines)}\n\n{_benchmark(found)}"


def cold_start() -> str:
    """Return the output of `benchmarks.cold_start`."""
    text = (RESULTS / "cold_start.txt").read_text(encoding="utf-8").strip()
    return f"```\n{text}\n```\n\n`python -m benchmarks.cold_start`"


def packing() -> str:
    """Return images/s of packing beside ShardWriter."""
    found = _read("packing.json")
    lines = [
        (
            name,
            f"{row['images_per_s']:,.0f}",
            f"{row['images_per_s'] * found['mean_image_bytes'] / 1e6:,.0f}",
            f"{row['images_per_s_of_a_core']:,.0f}",
        )
        for name, row in found["contestants"].items()
    ]
    head = ("packer", "images/s", "MB/s", "images/s per core")
    return f"{_markdown(head, lines)}\n\n{_benchmark(found)}"


def _benchmark(found: dict[str, Any]) -> str:
    """Return where the result of a benchmark on a CPU comes from, for the line below a table."""
    return f"`{found['command']}`, {found['date']}, {found['machine']}"


def recipes_short() -> str:
    """Return all recipes with hours and dollars, without the conditions of each figure."""
    rows = [
        (name, epochs, _figure(name, accuracy), source.split(",")[0], reproduced, hours, demand)
        for name, epochs, accuracy, source, reproduced, hours, demand, _ in recipe_rows(
            load_prices(), Options()
        )
    ]
    head = ("recipe", "epochs", "published top-1", "source", "reproduced here", "hours", "dollars")
    note = (
        "Hours and dollars: training and evaluating on a g6.12xlarge (4 L4) on demand or on the "
        "machine in brackets, computed by `python -m imagenet_rn50 estimate --recipes`, which "
        "prints its assumptions."
    )
    return f"{_markdown(head, rows)}\n\n{note}"


def _figure(name: str, accuracy: str) -> str:
    """Return a recipe's top-1 without its conditions; of ImageNet-1k, unless it says of what."""
    if not accuracy[:1].isdigit() and not accuracy.startswith("at least"):
        return "-"
    data = published_data(name)
    where = f" on {data.name}" if data is not None and data != IMAGENET_1K else ""
    return accuracy[: accuracy.index("%") + 1] + where


def places() -> str:
    """Return what a run takes on machines that are lent, and how long Kaggle's cores pack."""
    lines, prices = [], load_prices()
    for machine, name in (
        ("l4x1", "imagenette-10min"),
        ("l4x1", "imagenet100-1h"),
        ("g6.12xlarge", "rn50-16ep"),
        ("l4x4", "rn50-16ep"),
        ("a100x8", "classic-90ep"),
        ("kaggle-t4x2", "rn50-16ep-16gb"),
    ):
        found = make_estimate(name, load_recipe(name), prices, Options(instance=machine))
        hours = duration(found.recipe, found.rates).hours
        costs = [found.instance.on_demand, found.instance.spot]
        paid = ["-" if price is None else dollars(hours * price) for price in costs]
        lines.append((machine, name, hours_text(hours), *paid))
    head = ("machine", "recipe", "hours", "on demand", "spot")
    packing = _read("packing.json")["contestants"]["ours, resized short=256, 2 workers"]
    rate = packing["images_per_s"]
    num_images = IMAGENET_1K.num_train + IMAGENET_1K.num_validation
    note = (
        "Training and evaluating, computed by `python -m imagenet_rn50 estimate --recipe RECIPE "
        "--instance MACHINE`, which lists what it assumes; not run. Resizing on 2 cores, as many "
        f"as Kaggle lends: {rate:,.0f} images/s (`benchmarks/results/packing.txt`), "
        f"{num_images / rate / 3600:.1f} hours for {num_images:,} images, computed."
    )
    return f"{_markdown(head, lines)}\n\n{note}"


def recipes() -> str:
    """Return all recipes, with hours and dollars, as `estimate --recipes --markdown` does."""
    return format_recipes(load_prices(), Options(), markdown=True)


def plan(name: str) -> str:
    """Return the steps of a recipe, as `estimate --plan --volume 500 --markdown` prints them."""
    found = make_estimate(name, load_recipe(name), load_prices(), Options())
    steps = make_plan(found, PlanOptions(volume=500.0))
    return format_plan(steps, found, markdown=True)


TABLES: dict[str, Callable[[], str]] = {
    "gpu-steps": gpu_steps,
    "gpu-roofline": gpu_roofline,
    "gpu-breakdown": gpu_breakdown,
    "gpu-loop": gpu_loop,
    "loaders": loaders,
    "worker-scaling": worker_scaling,
    "cold-start": cold_start,
    "packing": packing,
    "recipes": recipes,
    "recipes-short": recipes_short,
    "places": places,
    "plan-rn50-16ep": partial(plan, "rn50-16ep"),
    "plan-tv2-600ep": partial(plan, "tv2-600ep"),
}


def main() -> None:
    """Write the tables, or check them."""
    stale = []
    for path in PAGES:
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if after == before:
            continue
        stale.append(path.name)
        if "--check" not in sys.argv[1:]:
            path.write_text(after, encoding="utf-8")
    for name in stale:
        print(f"{name}: its tables are not as they would be made")
    if stale and "--check" in sys.argv[1:]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
