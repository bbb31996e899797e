"""Write an evaluation: metrics.json, per_class.csv, report.html, and a table for the terminal.

OUT/
  metrics.json      every row of results; see docs/evaluation.md for each field
  per_class.csv     accuracy of each class, for the first row
  report.html       both, with plots, confusions and the most confident mistakes
"""

from __future__ import annotations

import csv
import io
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from imagenet_rn50 import __version__
from imagenet_rn50.classes import TOP_K, Classes
from imagenet_rn50.evaluation.datasets import ImageSet
from imagenet_rn50.evaluation.evaluate import Evaluation
from imagenet_rn50.evaluation.load_model import LoadedModel
from imagenet_rn50.evaluation.predictions import Result
from imagenet_rn50.evaluation.report import render_report
from imagenet_rn50.evaluation.statistics import NUM_BINS, ClassCount, class_counts, wilson
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import require_writable, write_json, write_text
from imagenet_rn50.utils.formatting import aligned, percent

SCHEMA = 1
METRICS, PER_CLASS, REPORT = "metrics.json", "per_class.csv", "report.html"

_PACKAGES = ("torch", "transformers", "torchvision", "pillow", "simplejpeg")


def require_own_folder(out: Path) -> None:
    """Check that an evaluation is not written into a model's folder, which `push` uploads.

    Raises:
        InputError: If `out` holds a model, is not a folder or is not writable.
    """
    if (out / "config.json").is_file() or (out.exists() and not out.is_dir()):
        raise InputError(
            f"{out} holds a model" if out.is_dir() else f"{out} is not a folder",
            expected="a separate folder for metrics.json, per_class.csv and report.html",
            fix="pass another folder as --out",
        )
    require_writable(out, fix="pass another folder as --out")


def write_evaluation(
    out: Path,
    loaded: LoadedModel,
    images: ImageSet,
    evaluation: Evaluation,
    classes: Classes | None,
) -> None:
    """Write the files of an evaluation, replacing those of an earlier one.

    Args:
        out: The folder.
        loaded: The model.
        images: The images.
        evaluation: The results.
        classes: The wnids for per_class.csv, if known.
    """
    metrics = metrics_of(loaded, images, evaluation)
    counted = class_counts(images.labels, evaluation.predictions.top)
    page = render_report(loaded, images, evaluation, counted, metrics)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / PER_CLASS, _per_class(loaded, counted, classes))
    write_text(out / REPORT, page)
    write_json(out / METRICS, metrics)  # last: if it exists, so does the rest


def metrics_of(loaded: LoadedModel, images: ImageSet, evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of metrics.json."""
    return {
        "schema": SCHEMA,
        "model": loaded.name,
        "checkpoint": loaded.checkpoint,
        "dataset": images.description,
        "split": images.description["split"],
        "num_classes": len(loaded.labels),
        "num_classes_counted": num_classes_counted(loaded, images),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "interval": "Wilson score, 95%",
        "ece_bins": NUM_BINS,
        "results": [row.as_dict() for row in evaluation.results],
        "versions": _versions(),
    }


def num_classes_counted(loaded: LoadedModel, images: ImageSet) -> int:
    """Return how many classes could be predicted: those of the test set, if it has a subset."""
    return len(loaded.labels) if images.subset is None else len(images.subset)


def results_table(results: tuple[Result, ...], num_classes: int) -> str:
    """Return the results as a table for the terminal.

    Args:
        results: The rows.
        num_classes: Classes that could be predicted; top-5 is omitted for five or fewer.
    """
    head = ("images", "transform", "flip", "number", "top-1 (95% interval)", "top-5", "loss", "ECE")
    rows: list[tuple[str, ...]] = [head]
    for row in results:
        low, high = row.top1_interval
        rows.append(
            (
                row.name,
                row.transform,
                "yes" if row.flip else "no",
                f"{row.num_images:,}",
                f"{percent(row.top1)} ({percent(low)} - {percent(high)})",
                percent(row.top5) if num_classes > TOP_K else "-",
                "-" if row.loss is None else f"{row.loss:.4f}",
                percent(row.calibration.ece),
            )
        )
    return aligned(rows)


def _per_class(loaded: LoadedModel, counted: list[ClassCount], classes: Classes | None) -> str:
    """Return per_class.csv; accuracies are in [0, 1]."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["index", "wnid", "label", "num_images", "top1", "top1_low", "top1_high", "top5"]
        + ["most_confused_with", "most_confused_with_label", "count"]
    )
    for row in counted:
        writer.writerow(
            [row.label, classes.wnids[row.label] if classes else "", loaded.labels[row.label]]
            + [row.num_images, row.top1 / row.num_images, *wilson(row.top1, row.num_images)]
            + [row.top5 / row.num_images, row.most_confused_with]
            + [
                "" if row.most_confused_with is None else loaded.labels[row.most_confused_with],
                row.count,
            ]
        )
    return buffer.getvalue()


def _versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    ours = {"imagenet_rn50": __version__, "python": platform.python_version()}
    return ours | {package: version(package) for package in _PACKAGES}
