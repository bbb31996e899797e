"""Many pictures at once: a row for each file, and all of them as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from space.model import NUM_GUESSES, Classifier, Guess
from space.pictures import PictureError, open_picture


@dataclass(frozen=True)
class Row:
    """What is known of one file.

    Attributes:
        file: Its name.
        guesses: The likeliest classes; empty when it could not be read.
        problem: Why it could not be read; empty when it was.
    """

    file: str
    guesses: Sequence[Guess] = ()
    problem: str = ""


def classify_files(classifier: Classifier, paths: Iterable[str]) -> Iterator[Row]:
    """Yields a row a file, whatever is in it."""
    for path in paths:
        try:
            yield Row(Path(path).name, classifier.guess(open_picture(path)))
        except PictureError as problem:
            yield Row(Path(path).name, problem=str(problem))


def to_csv(rows: Iterable[Row]) -> bytes:
    """Returns all guesses of all rows as CSV, in UTF-8 with the mark that spreadsheets look for."""
    numbers = range(1, NUM_GUESSES + 1)
    header = [f"{name}_{number}" for number in numbers for name in ("class", "score")]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["file", "problem", *header])
    for row in rows:
        cells = [cell for guess in row.guesses for cell in (guess.label, guess.score)]
        padding = [""] * (len(header) - len(cells))
        writer.writerow([row.file, row.problem, *cells, *padding])
    return text.getvalue().encode("utf-8-sig")
