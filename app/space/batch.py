"""Batch classification: one row per file, exported as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from space.images import ImageError, open_image
from space.model import NUM_PREDICTIONS, Classifier, Prediction


@dataclass(frozen=True)
class Row:
    """The result for one file.

    Attributes:
        file: File name.
        predictions: The most likely classes; empty if the file could not be read.
        is_unfamiliar: Whether it is unlike the images that the model saw; None if not known.
        error: Why the file could not be read; empty if it could.
    """

    file: str
    predictions: Sequence[Prediction] = ()
    is_unfamiliar: bool | None = None
    error: str = ""


def classify_files(classifier: Classifier, paths: Iterable[str]) -> Iterator[Row]:
    """Yield one row per file, also for files that cannot be read."""
    for path in paths:
        try:
            answer = classifier.answer(classifier.pixels(open_image(path)))
            yield Row(Path(path).name, answer.predictions, answer.is_unfamiliar)
        except ImageError as error:
            yield Row(Path(path).name, error=str(error))


def to_csv(rows: Iterable[Row]) -> bytes:
    """Return all predictions as CSV, in UTF-8 with a byte order mark for spreadsheets."""
    numbers = range(1, NUM_PREDICTIONS + 1)
    header = [f"{name}_{number}" for number in numbers for name in ("class", "score")]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["file", "error", "unfamiliar", *header])
    for row in rows:
        cells = [
            cell for prediction in row.predictions for cell in (prediction.label, prediction.score)
        ]
        padding = [""] * (len(header) - len(cells))
        unfamiliar = "" if row.is_unfamiliar is None else str(row.is_unfamiliar).lower()
        writer.writerow([row.file, row.error, unfamiliar, *cells, *padding])
    return text.getvalue().encode("utf-8-sig")
