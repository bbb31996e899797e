"""What people look at: logs.md and plots, made from metrics.jsonl alone (contract 8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imagenet_rn50.figures import new_figure, save_figure
from imagenet_rn50.files import write_text
from imagenet_rn50.runs.metrics import TRAIN, VALIDATION, read_metrics

_TABLE_HEAD = """\
| epoch | train loss | val loss | top-1 | top-5 | lr | images/s | waiting for data |
|---:|---:|---:|---:|---:|---:|---:|---:|
"""

_DATA_BOUND = 0.1  # part of the time; below it, a faster loader would gain next to nothing


def write_logs(run: Path) -> None:
    """Brings logs.md up to what metrics.jsonl says."""
    write_text(run / "logs.md", logs_markdown(run))


def logs_markdown(run: Path) -> str:
    """Returns the log that a person reads: one line an epoch."""
    rows, train, validations = [], [], []
    for record in read_metrics(run):
        if record["kind"] == TRAIN:
            train.append(record)
        elif record["kind"] == VALIDATION:
            rows.append(_row(record, train))
            validations.append(record)
            train = []
    best = max(validations, key=lambda record: float(record["top1"]), default=None)
    text = f"# {run.name}\n\n" + _TABLE_HEAD + "".join(rows)
    if best:
        text += (
            f"\nBest: {best['top1']:.2%} top-1 after epoch {best['epoch']:.2f}, "
            f"on {best['num_images']} images.\n"
        )
    return text


def _row(validation: dict[str, Any], train: list[dict[str, Any]]) -> str:
    """Returns one epoch's line, from its validation and the training records that led there."""
    cells = [f"{validation['epoch']:.2f}", "", f"{validation['loss']:.4f}"]
    cells += [f"{validation['top1']:.2%}", f"{validation['top5']:.2%}", "", "", ""]
    if train:
        num_images = sum(record["num_images"] for record in train)
        seconds = sum(record["seconds"] for record in train)
        loss = sum(record["loss"] * record["num_images"] for record in train) / num_images
        waited = sum(record["data_wait"] * record["seconds"] for record in train) / seconds
        cells[1] = f"{loss:.4f}"
        cells[5:] = [f"{train[-1]['lr']:.3g}", f"{num_images / seconds:.0f}", f"{waited:.0%}"]
    return "| " + " | ".join(cells) + " |\n"


def bottleneck(run: Path) -> str:
    """Says in a sentence what held the run up, with its figure."""
    train = read_metrics(run, TRAIN)
    seconds = sum(record["seconds"] for record in train)
    waited = sum(record["data_wait"] * record["seconds"] for record in train) / seconds
    rate = sum(record["num_images"] for record in train) / seconds
    culprit = "the loader holds it up" if waited > _DATA_BOUND else "compute holds it up"
    return f"{rate:.0f} images/s; {waited:.0%} of the time waiting for data: {culprit}"


def draw_plots(run: Path) -> list[Path]:
    """Draws loss, accuracy, learning rate and speed into `run`/plots.

    Args:
        run: The run folder, with a metrics.jsonl.

    Returns:
        The PNG files.
    """
    train, validation = read_metrics(run, TRAIN), read_metrics(run, VALIDATION)
    folder = run / "plots"
    folder.mkdir(exist_ok=True)
    loss = [("training", train, "loss", 1.0), ("validation", validation, "loss", 1.0)]
    accuracy = [
        (name, validation, key, 100.0) for name, key in (("top-1", "top1"), ("top-5", "top5"))
    ]
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
    """Draws curves over epochs: (name, records, key, factor) each."""
    figure = new_figure()
    axes = figure.add_subplot()
    for name, records, key, factor in curves:
        x = [record["epoch"] for record in records]
        y = [record[key] * factor for record in records]
        axes.plot(x, y, label=name, linewidth=1.5, marker="." if len(x) < 50 else "")
    axes.set(title=title, xlabel="epoch", ylabel=unit)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(frameon=False)
    save_figure(figure, path)
    return path
