"""logs.md and the plots of a run, made from metrics.jsonl alone; and the style of every figure.

matplotlib takes a second to import, so it is imported when something is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagenet_rn50.classes import FILE_NAME as CLASSES
from imagenet_rn50.classes import Classes
from imagenet_rn50.learning_rate import learning_rate, plateau_cuts
from imagenet_rn50.recipe import Recipe, load_recipe
from imagenet_rn50.runs.metrics import TRAIN, VALIDATION, read_metrics, score, time_mean
from imagenet_rn50.runs.run_dir import RECIPE
from imagenet_rn50.utils.files import write_bytes, write_text
from imagenet_rn50.utils.formatting import counted, percent, rate_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_SIZE_INCHES = (7.0, 4.0)
_DPI = 120
_TRAIN, _VALIDATION, _EMA_COLOR = "#2f7ebc", "#e07b39", "#4a9d5b"
_RATE_POINTS = 5000  # more than the plot has pixels
_FEW_POINTS = 50

_BEFORE_EMA = ("epoch", "train loss", "val loss", "top-1", "top-5")
_EMA = ("EMA top-1", "EMA top-5")
_AFTER_EMA = ("lr", "images/s", "waiting for data")
_UTILISATION = {"tflops": "TFLOP/s", "mfu": "MFU"}
_COST = ("USD spent", "USD to come")


def new_figure() -> Figure:
    """Return an empty figure that needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")


def png_of(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    write_bytes(path, png_of(figure))


def write_logs(run: Path) -> None:
    """Write logs.md from metrics.jsonl."""
    write_text(run / "logs.md", logs_markdown(run))


def logs_markdown(run: Path) -> str:
    """Return the log as a Markdown table, one line per epoch.

    Averaged weights (EMA), utilisation and cost have columns of their own, if the run has them.
    """
    rows, train, records = [], [], read_metrics(run)
    validations = [record for record in records if record["kind"] == VALIDATION]
    averaged = any("ema_top1" in record for record in validations)
    has_price = any("cost_usd" in record for record in validations)
    known = [key for key in _UTILISATION if any(key in r for r in records if r["kind"] == TRAIN)]
    for record in records:
        if record["kind"] == TRAIN:
            train.append(record)
        elif record["kind"] == VALIDATION:
            rows.append(_row(record, train, known, averaged=averaged, has_price=has_price))
            train = []
    head = (
        *(*_BEFORE_EMA, *(_EMA if averaged else ()), *_AFTER_EMA),
        *(*(_UTILISATION[key] for key in known), *(_COST if has_price else ())),
    )
    text = f"# {run.name}\n\n" + _line(head) + "|" + "---:|" * len(head) + "\n" + "".join(rows)
    best = max(validations, key=score, default=None)
    if best:
        text += (
            f"\nBest: {percent(score(best))} top-1{' of averaged weights' * ('ema_top1' in best)} "
            f"after epoch {best['epoch']:.2f}, on {counted(best['num_images'], 'image')}.\n"
        )
    return text


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


def _row(
    validation: dict[str, Any],
    train: list[dict[str, Any]],
    known: list[str],
    *,
    averaged: bool,
    has_price: bool,
) -> str:
    """Return the line of one epoch, from its validation and training records."""
    cells = [f"{validation['epoch']:.2f}", "", f"{validation['loss']:.4f}"]
    keys = ("top1", "top5", *(("ema_top1", "ema_top5") if averaged else ()))
    cells += [percent(validation[key]) if key in validation else "" for key in keys]
    trained, means = ["", "", ""], dict[str, float | None]()
    if train:
        num_images = sum(record["num_images"] for record in train)
        seconds = sum(record["seconds"] for record in train)
        loss = sum(record["loss"] * record["num_images"] for record in train) / num_images
        waited = sum(record["data_wait"] * record["seconds"] for record in train) / seconds
        cells[1] = f"{loss:.4f}"
        trained = [f"{train[-1]['lr']:.3g}", rate_text(num_images / seconds), percent(waited, 0)]
        means = {key: time_mean(train, key) for key in known}
    spelled = {"tflops": "{:.3g}", "mfu": "{:.1%}"}
    used = [means.get(key) for key in known]
    trained += [
        "" if mean is None else spelled[key].format(mean)
        for key, mean in zip(known, used, strict=True)
    ]
    costs = [validation.get(key) for key in ("cost_usd", "cost_left_usd")]
    money = ["" if cost is None else f"{cost:.2f}" for cost in costs]
    return _line(cells + trained + (money if has_price else []))


def draw_plots(run: Path) -> list[Path]:
    """Plot loss, accuracy, learning rate and speed into `run`/plots.

    Args:
        run: The run directory, with a metrics.jsonl.

    Returns:
        The PNG files.
    """
    train, validation = read_metrics(run, TRAIN), read_metrics(run, VALIDATION)
    recipe = load_recipe(str(run / RECIPE)) if (run / RECIPE).is_file() else None
    num_classes = len(Classes.load(run)) if (run / CLASSES).is_file() else None
    figures = {
        "loss": _loss_figure(train, validation, recipe, num_classes),
        "accuracy": _accuracy_figure(validation),
        "learning_rate": _rate_figure(train, validation, recipe),
        "speed": _train_figure("Training speed", "images/s", train, "images_per_second"),
        "data_wait": _train_figure(
            "Time spent waiting for data", "part of the time", train, "data_wait"
        ),
    }
    folder = run / "plots"
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def _loss_figure(
    train: list[dict[str, Any]],
    validation: list[dict[str, Any]],
    recipe: Recipe | None,
    num_classes: int | None,
) -> Figure:
    """Plot training and validation loss from zero, their lowest possible value.

    Label smoothing adds a constant to the training loss, even of a perfect model; see
    `smoothing_floor`. It is subtracted, so that both curves can be compared.
    """
    floor, name, unit = 0.0, "training", "cross-entropy, nats"
    if recipe is not None:
        if recipe.label_smoothing and num_classes and recipe.loss == "cross_entropy":
            floor = smoothing_floor(recipe.label_smoothing, num_classes)
            name += f", less the {floor:.3f} of label smoothing"
        if recipe.mixup_alpha or recipe.cutmix_alpha:
            name += ", of mixed images"
        if recipe.loss == "bce":
            name, unit = f"{name}: binary cross-entropy, right axis", f"validation: {unit}"
    figure, axes = _axes("Loss", unit)
    shown = [record | {"loss": record["loss"] - floor} for record in train]
    ours = axes
    if recipe is not None and recipe.loss == "bce":
        ours = axes.twinx()
        ours.set_ylabel("training: binary cross-entropy, nats")
    lines = _plot(ours, shown, "loss", name, color=_TRAIN)
    lines += _plot(axes, validation, "loss", "validation", color=_VALIDATION)
    lines += _plot(axes, validation, "ema_loss", "validation, EMA", color=_EMA_COLOR)
    lines += _mark_best(axes, validation)
    for one in (axes, ours):
        one.set_ylim(bottom=0)
    _legend(axes, lines)
    return figure


def smoothing_floor(smoothing: float, num_classes: int) -> float:
    """Return the lowest cross-entropy with smoothed labels: their entropy, nats.

    The true class has the probability 1 - s + s / C, each other one s / C (Szegedy et al. 2016).
    """
    other = smoothing / num_classes
    probabilities = [1 - smoothing + other] + [other] * (num_classes - 1)
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def _accuracy_figure(validation: list[dict[str, Any]]) -> Figure:
    """Plot top-1 and top-5 of each validation."""
    figure, axes = _axes("Validation accuracy", "accuracy")
    lines = _plot(axes, validation, "top1", "top-1", color=_TRAIN)
    lines += _plot(axes, validation, "top5", "top-5", color=_VALIDATION)
    lines += _plot(axes, validation, "ema_top1", "top-1, EMA", color=_TRAIN, linestyle="--")
    lines += _plot(axes, validation, "ema_top5", "top-5, EMA", color=_VALIDATION, linestyle="--")
    lines += _mark_best(axes, validation)
    axes.yaxis.set_major_formatter(_percent_of)
    axes.set_ylim(0, 1.02)
    _legend(axes, lines)
    return figure


def _rate_figure(
    train: list[dict[str, Any]], validation: list[dict[str, Any]], recipe: Recipe | None
) -> Figure:
    """Plot the learning rate of the schedule, and what was logged of it as points."""
    figure, axes = _axes("Learning rate", "learning rate")
    lines: list[Line2D] = []
    if recipe is not None:
        cuts = list(plateau_cuts(recipe, [(row["epoch"], row["loss"]) for row in validation]))
        epochs = [recipe.epochs * point / _RATE_POINTS for point in range(_RATE_POINTS + 1)]
        # A cut and a milestone change the rate at once: both sides are drawn.
        jumps = (*cuts, *recipe.schedule.milestones)
        epochs = sorted([*epochs, *jumps, *(math.nextafter(epoch, 0.0) for epoch in jumps)])
        rates = [learning_rate(recipe, e, sum(cut <= e for cut in cuts)) for e in epochs]
        lines += axes.plot(epochs, rates, color=_TRAIN, linewidth=1.5, label="schedule")
    style = {"color": _VALIDATION, "linestyle": "", "marker": ".", "markersize": 4}
    lines += _plot(axes, train, "lr", "logged", **style)
    lines += _mark_best(axes, validation)
    axes.set_ylim(bottom=0)
    _legend(axes, lines)
    return figure


def _train_figure(title: str, unit: str, train: list[dict[str, Any]], key: str) -> Figure:
    """Plot one value of the training lines."""
    figure, axes = _axes(title, unit)
    _plot(axes, train, key, "", color=_TRAIN)
    axes.set_ylim(bottom=0)
    if key == "data_wait":
        axes.yaxis.set_major_formatter(_percent_of)
        axes.set_ylim(0, 1.02)
    return figure


def _axes(title: str, unit: str) -> tuple[Figure, Axes]:
    """Return a figure over epochs."""
    figure = new_figure()
    axes = figure.add_subplot()
    axes.set(title=title, xlabel="epoch", ylabel=unit)
    axes.grid(alpha=0.3)
    return figure, axes


def _plot(
    axes: Axes, records: list[dict[str, Any]], key: str, name: str, **style: Any
) -> list[Line2D]:
    """Plot the records that have a key; nothing if none has it."""
    points = [(record["epoch"], record[key]) for record in records if key in record]
    if not points:
        return []
    options: dict[str, Any] = {"marker": "." if len(points) < _FEW_POINTS else ""} | style
    return axes.plot(*zip(*points, strict=True), label=name, **options)


def _mark_best(axes: Axes, validation: list[dict[str, Any]]) -> list[Line2D]:
    """Draw a line at the epoch of the best checkpoint, with its score in the legend."""
    best = max(validation, key=score, default=None)
    if best is None:
        return []
    name = f"best: epoch {best['epoch']:.2f}, {percent(score(best))} top-1"
    return [axes.axvline(best["epoch"], color="gray", linestyle=":", label=name)]


def _legend(axes: Axes, lines: list[Line2D]) -> None:
    """Put the legend below the axes, where it hides no curve."""
    names = [str(line.get_label()) for line in lines]
    place: Any = "outside lower center"  # matplotlib's types do not know it
    axes.figure.legend(lines, names, loc=place, ncols=2, frameon=False)


def _percent_of(value: float, position: object = None) -> str:
    """Return a tick in percent, without needless digits."""
    return f"{value * 100:g}%"
