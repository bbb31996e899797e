"""Where a number in a card comes from: a file that is published beside it, and a place in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagenet_rn50.errors import InputError
from imagenet_rn50.files import read_text
from imagenet_rn50.parsing import parse_json, parse_yaml
from imagenet_rn50.publishing.layout import CONFIG, EVALUATION, METRICS, ORIGIN, RECIPE, SHARDS
from imagenet_rn50.runs.metrics import START, TRAIN, VALIDATION, parse_lines
from imagenet_rn50.shards.imagenet1k import is_name

PUBLISHED = "published.yaml"
"""Figures of others, with their sources; it belongs to this package, not to a model."""

_MARK = re.compile(r"<!--([\w.-]+?)(?::(\d+))? ([\w.-]+)-->")


@dataclass(frozen=True)
class Place:
    """A value in a file.

    Args:
        file: Name of the file.
        field: Where in it: keys and positions, with dots between them.
        line: Line of metrics.jsonl, from 1; None for a figure about all of its lines.
    """

    file: str
    field: str
    line: int | None = None

    def mark(self) -> str:
        """Returns the comment that follows a number from here; nobody sees it on the page."""
        line = f":{self.line}" if self.line else ""
        return f"<!--{self.file}{line} {self.field}-->"

    def in_words(self) -> str:
        """Returns what the readers of the card see of it, in the same line as the number."""
        if self.file == METRICS:
            return f"{METRICS} line {self.line}" if self.line else f"{METRICS}, all lines"
        if self.file == PUBLISHED:
            return "not reproduced here"
        if self.file == EVALUATION and self.field.startswith("results."):
            return f"{EVALUATION} {'.'.join(self.field.split('.')[:2])}"
        return self.file


TRAINED_ON = Place(SHARDS, "dataset")
EVALUATED_ON = Place(EVALUATION, "dataset.name")
UNVERIFIED_PREFIX = "unverified-"
"""What the card's metadata puts before ImageNet-1k's name where the data was not shown to be it."""
REAL, REAL_SUFFIX = "real", "-real"
"""Results by ImageNet-ReaL's labels: their name in metrics.json, and what the card's metadata adds
to the name of the pictures' data set."""


def marks(text: str) -> list[tuple[Place, int, int]]:
    """Returns the places that a line of a card names, and where their comments begin and end."""
    return [
        (Place(m[1], m[3], int(m[2]) if m[2] else None), m.start(), m.end())
        for m in _MARK.finditer(text)
    ]


@dataclass(frozen=True)
class Evidence:
    """The files that a card's numbers come from.

    Args:
        folder: Where they stand, beside the card.
    """

    folder: Path
    _read: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def has(self, file: str) -> bool:
        """Says whether there is such a file."""
        return (self.folder / file).is_file()

    def value(self, place: Place) -> Any:
        """Returns what stands at a place.

        Raises:
            InputError: When there is no such place.
        """
        content = self._content(place.file)
        if place.file == METRICS:
            if place.line is None:
                content = summary(content)
            elif not 1 <= place.line <= len(content):
                raise InputError(f"{place.file} has no line {place.line}")
            else:
                content = content[place.line - 1]
        for key in place.field.split("."):
            try:
                content = content[int(key) if isinstance(content, list) else key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise InputError(f"{place.in_words()} has no {place.field}") from None
        return content

    def cite(self, place: Place, spec: str = "") -> str:
        """Returns a value, formatted, with the mark that says where it comes from.

        Args:
            place: Where it stands; of a table, its length is meant.
            spec: How to format it, as in an f-string.
        """
        value = self.value(place)
        shown = len(value) if isinstance(value, dict | list) else value
        return f"{shown:{spec}}{place.mark()}"

    def trained_on_imagenet1k(self, split: str = "train") -> bool:
        """Return whether a split of the shards of the training was shown to be ImageNet-1k's."""
        return split in self._known(Place(SHARDS, "imagenet1k_splits"), [])

    def evaluated_on_imagenet1k(self) -> bool:
        """Return whether what was evaluated on was shown to be ImageNet-1k's."""
        return self._known(Place(EVALUATION, "dataset.is_imagenet1k"), False) is True

    def is_imagenet1k(self) -> bool:
        """Return whether the data of the training, or else of the evaluation, was shown to be."""
        if self.has(TRAINED_ON.file):
            return self.trained_on_imagenet1k()
        return self.evaluated_on_imagenet1k()

    def cite_data(self, place: Place, is_imagenet1k: bool) -> str:
        """Return the name of a data set as `cite` does, without the claim that it may be."""
        doubt = " (not shown to be ImageNet-1k)"
        is_claim = is_name(str(self.value(place))) and not is_imagenet1k
        return self.cite(place) + doubt * is_claim

    def _known(self, place: Place, default: Any) -> Any:
        """Returns what stands at a place; the default where nobody recorded it."""
        try:
            return self.value(place)
        except InputError:
            return default

    def init_from(self) -> int | None:
        """Returns the line that says whose weights training began with; None for fresh ones."""
        return next((n for n, record in self.lines(START) if "init_from" in record), None)

    def summary(self) -> dict[str, Any]:
        """Returns the figures about all lines of metrics.jsonl."""
        return summary(self._content(METRICS))

    def lines(self, kind: str) -> list[tuple[int, dict[str, Any]]]:
        """Returns the lines of one kind in metrics.jsonl, with their numbers, from 1."""
        records = self._content(METRICS) if self.has(METRICS) else []
        return [(n, record) for n, record in enumerate(records, start=1) if record["kind"] == kind]

    def _content(self, file: str) -> Any:
        """Returns what a file holds, read once.

        Raises:
            InputError: When there is no such file, or it is damaged.
        """
        if file not in self._read:
            reader = _READERS.get(file)
            path = (Path(__file__).parent if file == PUBLISHED else self.folder) / file
            if reader is None or not path.is_file():
                raise InputError(f"there is no evidence {file} beside the card")
            self._read[file] = reader(read_text(path), str(path))
        return self._read[file]


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns figures about all lines of a metrics.jsonl.

    Args:
        records: Its lines.

    Returns:
        `hours` and `minutes` of training and validation; `images_per_second` of training; `starts`,
        how often a process began or went on; `cost_usd`, where each of them knew its price. Work
        that was lost to an interruption and run again counts once, but was paid for.
    """
    train = [record for record in records if record["kind"] == TRAIN]
    seconds = sum(r.get("seconds", 0.0) for r in records if r["kind"] in {TRAIN, VALIDATION})
    trained = sum(record["seconds"] for record in train)
    figures = {
        "hours": seconds / 3600,
        "minutes": seconds / 60,
        "starts": sum(record["kind"] == START for record in records),
    }
    if trained:
        figures["images_per_second"] = sum(record["num_images"] for record in train) / trained
    starts = [record for record in records if record["kind"] == START]
    if starts and all("cost_usd" in record for record in starts):
        figures["cost_usd"] = max(record.get("cost_usd", 0.0) for record in records)
    return figures


_READERS: dict[str, Callable[[str, str], Any]] = {
    METRICS: parse_lines,
    EVALUATION: parse_json,
    CONFIG: parse_json,
    SHARDS: parse_json,
    ORIGIN: parse_json,
    RECIPE: parse_yaml,
    PUBLISHED: parse_yaml,
}
