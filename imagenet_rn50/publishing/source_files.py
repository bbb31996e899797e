"""The files that a card's numbers come from, and references to their fields (contract 8).

`SourceFiles.cite` returns a value followed by an HTML comment that names its file and field, from
which `provenance` checks it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagenet_rn50.classes import TOP_K
from imagenet_rn50.publishing.layout import (
    CALIBRATION,
    CONFIG,
    EVALUATION,
    EXAMPLES_SOURCE,
    METRICS,
    ORIGIN,
    PROCESSOR,
    RECIPE,
    SHARDS,
    STATS,
    WEB_METRICS,
)
from imagenet_rn50.publishing.snippets import Format
from imagenet_rn50.runs.checkpoint import SelectedWeights
from imagenet_rn50.runs.metrics import START, TRAIN, VALIDATION, parse_lines
from imagenet_rn50.shards.imagenet1k import is_name
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_text
from imagenet_rn50.utils.formatting import first_name, percent_spec, quoted
from imagenet_rn50.utils.parsing import parse_json, parse_yaml

PUBLISHED = "published.yaml"
"""Published results of other projects, with links; part of this package, not of an export."""

_SPECIAL = re.compile(r"[\\`*\[\]<>|]")  # characters that Markdown or HTML would interpret


@dataclass(frozen=True)
class CardInfo:
    """Facts of an export that its source files do not hold.

    Attributes:
        name: The model's name.
        form: Format of the weights.
        dtype: Data type of the weights.
        choice: The selected weights of a run; None for pretrained weights, which have an
            origin.json.
    """

    name: str
    form: Format
    dtype: str
    choice: SelectedWeights | None


@dataclass(frozen=True)
class FieldRef:
    """A reference to a field of a file.

    Args:
        file: Name of the file.
        field: Keys and list positions, joined by dots.
        line: Line of metrics.jsonl, from 1; None for a figure that `summarize` computes.
    """

    file: str
    field: str
    line: int | None = None

    def mark(self) -> str:
        """Return the HTML comment that follows a number from here."""
        line = f":{self.line}" if self.line else ""
        return f"<!--{self.file}{line} {self.field}-->"

    def describe(self) -> str:
        """Return the source as readers of the card see it, in the same line as the number."""
        if self.file == METRICS:
            return f"{METRICS} line {self.line}" if self.line else f"{METRICS}, all lines"
        if self.file == PUBLISHED:
            return "not reproduced here"
        if self.file == EVALUATION and self.field.startswith("results."):
            return f"{EVALUATION} {'.'.join(self.field.split('.')[:2])}"
        return self.file

    def as_arguments(self) -> dict[str, Any]:
        """Return the arguments of a metric in the card's metadata."""
        source = {"source": self.describe(), "file": self.file, "field": self.field}
        return source | ({"line": self.line} if self.line else {})


TRAINED_ON = FieldRef(SHARDS, "dataset")
EVALUATED_ON = FieldRef(EVALUATION, "dataset.name")
UNVERIFIED_PREFIX = "unverified-"
"""Precedes ImageNet-1k's name in the metadata if classes and counts did not confirm it."""
REAL, REAL_SUFFIX = "real", "-real"
"""Results with ImageNet-ReaL's labels: their name in metrics.json; the suffix of the data set's
name in the metadata."""


def summarize(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return figures about all lines of a metrics.jsonl.

    Args:
        records: Its lines.

    Returns:
        `hours` and `minutes` of training and validation; `starts`, the number of processes;
        `images_per_second` of training, if any; `cost_usd`, if every process knew its price. Work
        that was lost and repeated counts once in the times, but is included in the cost.
    """
    starts = [record for record in records if record["kind"] == START]
    train = [record for record in records if record["kind"] == TRAIN]
    trained = sum(record["seconds"] for record in train)
    seconds = sum(r.get("seconds", 0.0) for r in records if r["kind"] in {TRAIN, VALIDATION})
    figures = {"hours": seconds / 3600, "minutes": seconds / 60, "starts": len(starts)}
    if trained:
        figures["images_per_second"] = sum(record["num_images"] for record in train) / trained
    if starts and all("cost_usd" in record for record in starts):
        figures["cost_usd"] = max(record.get("cost_usd", 0.0) for record in records)
    return figures


def _parse_metrics(text: str, source: str) -> dict[int | None, dict[str, Any]]:
    """Return the lines by number, from 1, and under None the summary of all lines."""
    records = parse_lines(text, source)
    return {None: summarize(records), **dict(enumerate(records, start=1))}


_PARSERS: dict[str, Callable[[str, str], Any]] = {
    METRICS: _parse_metrics,
    EVALUATION: parse_json,
    CONFIG: parse_json,
    SHARDS: parse_json,
    PROCESSOR: parse_json,
    STATS: parse_json,
    ORIGIN: parse_json,
    CALIBRATION: parse_json,
    EXAMPLES_SOURCE: parse_json,
    str(WEB_METRICS): parse_json,
    RECIPE: parse_yaml,
    PUBLISHED: parse_yaml,
}


@dataclass(frozen=True)
class SourceFiles:
    """The files that a card's numbers come from.

    Args:
        folder: The exported folder, which holds the card and these files.
    """

    folder: Path
    _parsed: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def has(self, file: str) -> bool:
        """Return whether the folder has the file."""
        return (self.folder / file).is_file()

    def value(self, ref: FieldRef) -> Any:
        """Return the value of a field.

        Raises:
            InputError: If the file is missing or damaged, or has no such field.
        """
        value = self._content(ref.file)
        keys: list[Any] = [ref.line] if ref.file == METRICS else []
        for key in keys + ref.field.split("."):
            try:
                value = value[int(key) if isinstance(value, list) else key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise InputError(f"{ref.describe()} has no {ref.field}") from None
        return value

    def get(self, ref: FieldRef, default: Any = None) -> Any:
        """Return the value of a field, or the default if it is not recorded."""
        try:
            return self.value(ref)
        except InputError:
            return default

    def cite(self, ref: FieldRef, spec: str = "", *, first_only: bool = False) -> str:
        """Return a formatted value (of a dict or list, its length), followed by its mark.

        Text is escaped for Markdown.

        Args:
            ref: The field.
            spec: A format specification, as in an f-string.
            first_only: Whether to cite only the first of the names that a label lists.
        """
        value = self.value(ref)
        value = first_name(value) if first_only else value
        shown = len(value) if isinstance(value, dict | list) else value
        return f"{escape(shown) if isinstance(shown, str) else shown:{spec}}{ref.mark()}"

    def cite_percent(self, ref: FieldRef) -> str:
        """Cite a fraction as percent; only 0 and 1 are rounded to 0% and 100%."""
        return self.cite(ref, percent_spec(self.value(ref)))

    def cite_with_interval(self, field: str) -> str:
        """Cite a field of metrics.json and its interval as percent."""
        value, low, high = (
            self.cite_percent(FieldRef(EVALUATION, name))
            for name in (field, f"{field}_low", f"{field}_high")
        )
        return f"{value} ({low} to {high})"

    def cite_data(self, ref: FieldRef, is_imagenet1k: bool) -> str:
        """Cite a data set's name; if it is an unverified claim to be ImageNet-1k, add that."""
        is_claim = is_name(str(self.value(ref))) and not is_imagenet1k
        return self.cite(ref) + " (not shown to be ImageNet-1k)" * is_claim

    def trained_on_imagenet1k(self, split: str = "train") -> bool:
        """Return whether a split of the training's shards is verified to be ImageNet-1k's."""
        return split in self.get(FieldRef(SHARDS, "imagenet1k_splits"), [])

    def evaluated_on_imagenet1k(self) -> bool:
        """Return whether the evaluation's data is verified to be ImageNet-1k's."""
        return self.get(FieldRef(EVALUATION, "dataset.is_imagenet1k")) is True

    def is_imagenet1k(self) -> bool:
        """Return whether the data of the training, or else of the evaluation, is verified."""
        if self.has(SHARDS):
            return self.trained_on_imagenet1k()
        return self.evaluated_on_imagenet1k()

    def lines(self, kind: str) -> list[tuple[int, dict[str, Any]]]:
        """Return the lines of one kind in metrics.jsonl, with their numbers, from 1."""
        records = self._content(METRICS) if self.has(METRICS) else {}
        return [(n, record) for n, record in records.items() if n and record["kind"] == kind]

    def init_from(self) -> int | None:
        """Return the line that names the weights that training began with; None if none did."""
        return next((n for n, record in self.lines(START) if "init_from" in record), None)

    def lineage(self) -> list[dict[str, Any]]:
        """Return the options of the training's shards, after those they were selected from.

        Each has the name of its data set as `dataset`; the first is what was packed or indexed.
        """
        options = self.get(FieldRef(SHARDS, "options"))
        options = options if isinstance(options, dict) else {}
        found = [options | {"dataset": str(self.value(TRAINED_ON))}]
        while "subset" in options:
            dataset, options = options["parent"]["dataset"], options["parent"]["options"]
            found.append(options | {"dataset": dataset})
        return found[::-1]

    def base_model(self) -> str | None:
        """Return the Hub id of the model that was fine-tuned; None if it is not from the Hub."""
        if (line := self.init_from()) is None:
            return None
        name = str(self.value(FieldRef(METRICS, "init_from.name", line)))
        return name.partition("@")[0] if "/" in name else None  # files have no folders

    def dashboard(self) -> FieldRef | None:
        """Return the reference to the Space that has the run's Trackio dashboard, if any."""
        found = [n for n, record in self.lines(START) if "trackio_space" in record]
        return FieldRef(METRICS, "trackio_space", found[-1]) if found else None

    def evaluations(self) -> list[dict[str, Any]]:
        """Return the results of metrics.json, if there is one."""
        if not self.has(EVALUATION):
            return []
        results: list[dict[str, Any]] = self.value(FieldRef(EVALUATION, "results"))
        return results

    def has_top5(self, file: str) -> bool:
        """Return whether top-5 is meaningful in a file: not if there are at most five classes."""
        num_classes = len(self.value(FieldRef(CONFIG, "id2label")))
        if file == EVALUATION:  # a test set may have a subset of the classes
            num_classes = self.get(FieldRef(EVALUATION, "num_classes_counted"), num_classes)
        return num_classes > TOP_K

    def command_options(self) -> set[str]:
        """Return all recorded options of `pack` and `subset`, as on a command line."""
        recorded = [{**options, **options.get("subset", {})} for options in self.lineage()]
        return {as_option(name, value) for options in recorded for name, value in options.items()}

    def _content(self, file: str) -> Any:
        """Return the parsed content of a file, read once.

        Raises:
            InputError: If it is missing, damaged or not a source of numbers.
        """
        if file not in self._parsed:
            path = (Path(__file__).parent if file == PUBLISHED else self.folder) / file
            if file not in _PARSERS or not path.is_file():
                raise InputError(f"there is no file {file} beside the card")
            self._parsed[file] = _PARSERS[file](read_text(path), str(path))
        return self._parsed[file]


def escape(text: str) -> str:
    """Return text with the characters that Markdown and HTML would interpret escaped."""
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", text)


def as_option(name: str, value: Any) -> str:
    """Return a recorded option as on a command line."""
    flag = "--" + name.replace("_", "-")
    if value is True:
        return flag
    return f"{flag} {'none' if value is None else quoted(value)}"
