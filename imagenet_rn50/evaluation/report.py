"""Render report.html: one file, without external resources, with plots for light and dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context, style
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from imagenet_rn50.classes import TOP_K
from imagenet_rn50.evaluation.datasets import ImageSet
from imagenet_rn50.evaluation.evaluate import Evaluation
from imagenet_rn50.evaluation.load_model import LoadedModel
from imagenet_rn50.evaluation.statistics import (
    NUM_BINS,
    Calibration,
    ClassCount,
    Interval,
    confusion_matrix,
    confusions,
    wilson,
)
from imagenet_rn50.runs.plots import new_figure, png_of
from imagenet_rn50.utils import formatting
from imagenet_rn50.utils.formatting import first_name

_LIGHT, _DARK = "default", "dark_background"
_BARS, _GAPS = "#2f7ebc", "#e07b39"  # distinguishable without color vision, readable on both pages
_DARK_PAGE = "#16191d"
_MOST_IN_MATRIX = 50  # classes
_MOST_COUNTED = 20  # classes of a matrix with numbers in its cells
_NAME_LENGTH = 24  # characters
_MATRIX_INCHES = 8.0


class Plot(NamedTuple):
    """One plot, twice: PNGs for light and dark pages."""

    light: bytes
    dark: bytes

    @property
    def width(self) -> int:
        """Width, px."""
        return _size_of(self.light)[0]

    @property
    def height(self) -> int:
        """Height, px."""
        return _size_of(self.light)[1]


def _size_of(png: bytes) -> tuple[int, int]:
    """Return width and height of a PNG, px."""
    with Image.open(io.BytesIO(png)) as image:
        return image.size


def reliability_plot(calibration: Calibration) -> Plot:
    """Draw accuracy over confidence, bin by bin, and how many images are in each bin."""

    def draw(figure: Figure) -> None:
        num_bins = len(calibration.num_images)
        left = np.arange(num_bins) / num_bins
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        filled = calibration.num_images > 0
        bars = {"align": "edge", "width": 1 / num_bins}
        above.bar(left[filled], calibration.accuracy[filled], color=_BARS, label="accuracy", **bars)
        above.plot(
            calibration.confidence[filled],
            calibration.accuracy[filled],
            "o",
            color=_GAPS,
            markersize=5,
            label="at the bin's mean confidence",
        )
        above.plot([0, 1], [0, 1], "--", color="gray", label="perfectly calibrated")
        above.set(ylabel="accuracy", ylim=(0, 1.02), xlim=(0, 1))
        above.yaxis.set_major_formatter("{x:.0%}")
        above.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        below.bar(left, calibration.num_images / calibration.num_images.sum(), color=_BARS, **bars)
        below.set(xlabel="confidence", ylabel="part of images")
        below.xaxis.set_major_formatter("{x:.0%}")
        below.yaxis.set_major_formatter("{x:.0%}")

    return _drawn(draw)


def class_plot(accuracies: NDArray[np.float64]) -> Plot:
    """Draw a histogram of the top-1 accuracy of the classes.

    Args:
        accuracies: Top-1 of each class, in [0, 1]; (C,) float64.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.hist(accuracies, bins=20, range=(0, 1), color=_BARS)
        mean = float(accuracies.mean())
        axes.axvline(mean, linestyle="--", color=_GAPS, label=f"mean over classes, {mean:.1%}")
        axes.set(xlabel="top-1 accuracy of a class", ylabel="number of classes", xlim=(0, 1))
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper left", frameon=False)

    return _drawn(draw)


def matrix_plot(counts: NDArray[np.int64], names: Sequence[str]) -> Plot:
    """Draw a confusion matrix: of each true class, which part was predicted as which class.

    Args:
        counts: Images by true and predicted class; (C, C) int64.
        names: Names of the classes.
    """
    num_classes = len(names)
    totals = counts.sum(axis=1, keepdims=True)
    parts = counts / np.maximum(totals, 1)
    short = [
        name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…" for name in names
    ]
    side = min(max(0.5 * num_classes, 3.0), _MATRIX_INCHES)

    def draw(figure: Figure) -> None:
        figure.set_size_inches(side + 2.6, side + 1.6)
        axes = figure.subplots()
        is_dark = to_rgb(figure.get_facecolor())[0] < 0.5
        shown = axes.imshow(parts, cmap="Blues_r" if is_dark else "Blues", vmin=0, vmax=1)
        size = min(9.0, 72 * side / num_classes * 0.8)  # points; the height of a row
        ticks = range(num_classes)
        axes.set_xticks(ticks, short, rotation=90, fontsize=size)
        axes.set_yticks(ticks, short, fontsize=size)
        axes.set(xlabel="predicted class", ylabel="true class")
        bar = figure.colorbar(shown, format="{x:.0%}", shrink=0.8)
        bar.set_label("part of the images of the true class")
        if num_classes > _MOST_COUNTED:
            return
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if (parts[row, column] > 0.5) != is_dark else "black"
            text = f"{counts[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)

    return _drawn(draw)


def _drawn(draw: Callable[[Figure], None]) -> Plot:
    """Draw a plot for light and dark pages."""
    pngs = []
    for name, page in ((_LIGHT, "#ffffff"), (_DARK, _DARK_PAGE)):
        with rc_context(), style.context(name):
            figure = new_figure()
            figure.set_facecolor(page)
            draw(figure)
            for axes in figure.axes:
                axes.set_facecolor(page)
            pngs.append(png_of(figure))
    return Plot(*pngs)


_NUM_CLASSES_SHOWN = 10  # of the best, and of the worst; up to twice as many, all of them
_NUM_PAIRS = 20
_NUM_MISTAKES = 24
_THUMBNAIL = 224  # px
_THUMBNAIL_QUALITY = 80


@dataclass(frozen=True)
class ShownClass:
    """A row of the tables of best and worst classes."""

    label: str
    num_images: int
    top1: float
    interval: Interval
    most_confused_with: str
    count: int


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction in the gallery.

    Args:
        key: Name of the image.
        image: JPEG bytes.
        width: Width, px.
        height: Height, px.
        target: Name of the true class.
        named: Name of the predicted class.
        confidence: Its probability, in [0, 1].
    """

    key: str
    image: bytes
    width: int
    height: int
    target: str
    named: str
    confidence: float


def render_report(
    loaded: LoadedModel,
    images: ImageSet,
    evaluation: Evaluation,
    counted: list[ClassCount],
    metrics: dict[str, Any],
) -> str:
    """Return the report as HTML.

    Args:
        loaded: The model.
        images: The images.
        evaluation: The results.
        counted: Counts per class.
        metrics: The content of metrics.json.
    """
    first, predictions, labels = evaluation.results[0], evaluation.predictions, loaded.labels
    ranked = sorted(counted, key=lambda row: (row.top1 / row.num_images, row.label))
    shown = [_shown(row, labels) for row in ranked]
    is_few = len(shown) <= 2 * _NUM_CLASSES_SHOWN
    possible = np.arange(len(labels)) if images.subset is None else images.subset
    accuracies = np.array([row.top1 / row.num_images for row in counted])
    environment = Environment(
        loader=PackageLoader("imagenet_rn50.evaluation", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": formatting.percent,
        "counted": formatting.counted,
        "base64": _base64,
    }
    return environment.get_template("report.html.j2").render(
        metrics=metrics,
        results=evaluation.results,
        first=first,
        num_bins=NUM_BINS,
        reliability=reliability_plot(first.calibration),
        classes=None if is_few else class_plot(accuracies),
        matrix=_matrix(images, evaluation, labels, possible),
        num_classes=len(counted),
        subset=images.subset,
        num_labels=len(labels),
        num_labels_counted=len(possible),
        has_top5=metrics["num_classes_counted"] > TOP_K,
        all_classes=shown if is_few else [],
        worst=[] if is_few else shown[:_NUM_CLASSES_SHOWN],
        best=[] if is_few else shown[: -_NUM_CLASSES_SHOWN - 1 : -1],
        pairs=[
            (labels[pair.target], labels[pair.named], pair.count)
            for pair in confusions(images.labels, predictions.top[:, 0], _NUM_PAIRS)
        ],
        mistakes=_mistakes(images, evaluation, labels),
        num_wrong=first.num_images - first.correct_top1,
    )


def _matrix(
    images: ImageSet,
    evaluation: Evaluation,
    labels: tuple[str, ...],
    possible: NDArray[np.int64],
) -> Plot | None:
    """Return the confusion matrix of the classes that can be predicted; None if they are many."""
    if not 1 < len(possible) <= _MOST_IN_MATRIX:
        return None
    counts = confusion_matrix(images.labels, evaluation.predictions.top[:, 0], possible)
    return matrix_plot(counts, [first_name(labels[label]) for label in possible])


def _shown(row: ClassCount, labels: tuple[str, ...]) -> ShownClass:
    """Return a row of the tables of classes."""
    return ShownClass(
        label=labels[row.label],
        num_images=row.num_images,
        top1=row.top1 / row.num_images,
        interval=wilson(row.top1, row.num_images),
        most_confused_with="" if row.most_confused_with is None else labels[row.most_confused_with],
        count=row.count,
    )


def _mistakes(images: ImageSet, evaluation: Evaluation, labels: tuple[str, ...]) -> list[Mistake]:
    """Return the most confident mistakes."""
    predictions = evaluation.predictions
    wrong = np.flatnonzero(predictions.top[:, 0] != images.labels)
    order = np.argsort(-predictions.confidence[wrong], kind="stable")
    shown = []
    for index in wrong[order][:_NUM_MISTAKES].tolist():
        image, width, height = _thumbnail(images.read(index))
        shown.append(
            Mistake(
                key=images.key_of(index),
                image=image,
                width=width,
                height=height,
                target=labels[images.labels[index]],
                named=labels[predictions.top[index, 0]],
                confidence=float(predictions.confidence[index]),
            )
        )
    return shown


def _thumbnail(content: bytes) -> tuple[bytes, int, int]:
    """Return a thumbnail as JPEG bytes, with its width and height in px."""
    with Image.open(io.BytesIO(content)) as image:
        small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=_THUMBNAIL_QUALITY)
    return buffer.getvalue(), small.width, small.height


def _base64(content: bytes) -> str:
    """Return bytes as base64 text, for a data URL."""
    return base64.b64encode(content).decode("ascii")
