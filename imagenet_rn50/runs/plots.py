"""logs.md and the plots of a run, made from metrics.jsonl alone; and the style of every figure.

matplotlib takes a second to import, so it is imported when something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagenet_rn50.runs.metrics import TRAIN, VALIDATION, read_metrics, score
from imagenet_rn50.utils.files import write_bytes, write_text
from imagenet_rn50.utils.formatting import counted, percent, rate_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZE_INCHES = (7.0, 4.0)
_DPI = 120

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
    rows, train, validations = [], [], read_metrics(run, VALIDATION)
    averaged = any("ema_top1" in record for record in validations)
    has_price = any("cost_usd" in record for record in validations)
    known = [key for key in _UTILISATION if any(key in r for r in read_metrics(run, TRAIN))]
    for record in read_metrics(run):
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
    trained, means = ["", "", ""], dict[str, float]()
    if train:
        num_images = sum(record["num_images"] for record in train)
        seconds = sum(record["seconds"] for record in train)
        loss = sum(record["loss"] * record["num_images"] for record in train) / num_images
        waited = sum(record["data_wait"] * record["seconds"] for record in train) / seconds
        cells[1] = f"{loss:.4f}"
        trained = [f"{train[-1]['lr']:.3g}", rate_text(num_images / seconds), percent(waited, 0)]
        used = [key for key in known if all(key in record for record in train)]
        means = {key: sum(r[key] * r["seconds"] for r in train) / seconds for key in used}
    spelled = {"tflops": "{:.3g}", "mfu": "{:.1%}"}
    trained += [spelled[key].format(means[key]) if key in means else "" for key in known]
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
    folder = run / "plots"
    folder.mkdir(exist_ok=True)
    averaged = [record for record in validation if "ema_top1" in record]
    loss = [("training", train, "loss", 1.0), ("validation", validation, "loss", 1.0)]
    accuracy = [("top-1", validation, "top1", 100.0), ("top-5", validation, "top5", 100.0)]
    if averaged:
        loss.append(("validation, EMA", averaged, "ema_loss", 1.0))
        accuracy.append(("top-1, EMA", averaged, "ema_top1", 100.0))
        accuracy.append(("top-5, EMA", averaged, "ema_top5", 100.0))
    rate = [("learning rate", train, "lr", 1.0)]
    speed = [("images/s", train, "images_per_second", 1.0)]
    waiting = [("waiting for data", train, "data_wait", 100.0)]
    return [
        _draw(folder / "loss.png", "Loss", "cross-entropy, nats", loss),
        _draw(folder / "accuracy.png", "Validation accuracy", "%", accuracy),
        _draw(folder / "learning_rate.png", "Learning rate", "", rate),
        _draw(folder / "speed.png", "Training speed", "images/s", speed),
        _draw(folder / "data_wait.png", "Time spent waiting for data", "%", waiting),
    ]


def _draw(
    path: Path,
    title: str,
    unit: str,
    curves: list[tuple[str, list[dict[str, Any]], str, float]],
) -> Path:
    """Plot curves over epochs: (name, records, key, factor) each."""
    figure = new_figure()
    axes = figure.add_subplot()
    for name, records, key, factor in curves:
        x = [record["epoch"] for record in records]
        y = [record[key] * factor for record in records]
        style = "--" if name.endswith("EMA") else "-"
        axes.plot(x, y, style, label=name, linewidth=1.5, marker="." if len(x) < 50 else "")
    axes.set(title=title, xlabel="epoch", ylabel=unit)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(frameon=False)
    save_figure(figure, path)
    return path
