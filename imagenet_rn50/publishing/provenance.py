"""Provenance of a card's numbers: each comes from a field of a file beside the card (contract 8).

`model_card` cites values with `SourceFiles.cite`, which appends a comment with file and field to
each. `unsourced_numbers` reads a finished card and compares each number with its source.

A number is whatever begins with a digit, and a percentage or decimal that follows a letter. In the
text, the comment of its `FieldRef` must follow it, and its line must name the file in words. In the
metadata, it must be a result whose arguments name the field. Exempt are names (`_NAMES`, the title,
data sets), link targets, the copy of recipe.yaml and the recorded options of the pack command.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagenet_rn50.publishing.layout import (
    CARD,
    CONFIG,
    EVALUATION,
    METRICS,
    ORIGIN,
    RECIPE,
    SHARDS,
)
from imagenet_rn50.runs.metrics import START, TRAIN, VALIDATION, parse_lines
from imagenet_rn50.shards.imagenet1k import is_name
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_text
from imagenet_rn50.utils.parsing import parse_json, parse_yaml

PUBLISHED = "published.yaml"
"""Published results of other projects, with links; part of this package, not of an export."""


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
    ORIGIN: parse_json,
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

    def cite(self, ref: FieldRef, spec: str = "") -> str:
        """Return a formatted value (of a dict or list, its length), followed by its mark.

        Args:
            ref: The field.
            spec: A format specification, as in an f-string.
        """
        value = self.value(ref)
        shown = len(value) if isinstance(value, dict | list) else value
        return f"{shown:{spec}}{ref.mark()}"

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


def as_option(name: str, value: Any) -> str:
    """Return a recorded option as on a command line."""
    flag = "--" + name.replace("_", "-")
    if value is True:
        return flag
    return f"{flag} {'none' if value is None else shlex.quote(str(value))}"


_MARK = re.compile(r"<!--([\w.-]+?)(?::(\d+))? ([\w.-]+)-->")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\.?\d[\d.,]*(?:[eE][-+]?\d+)?%?|\d[\d,]*(?:\.\d+)?%|\d+\.\d+")
_LAST_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?%?$")
_NAMES = re.compile(r"\b(ResNet-50s?|v1\.5|top-[15]|ImageNet-1k|95% interval|apache-2\.0)\b", re.I)
_LINK_TARGET = re.compile(r"\]\([^()\s]*\)")
_CARD = re.compile(r"\A(?:---\n(?P<yaml>.*?\n)---\n)(?:\s*# (?P<title>[^\n]+)\n)?", re.S)


def unsourced_numbers(folder: Path) -> list[str]:
    """Find the numbers of a card that have no source, or that differ from it.

    Args:
        folder: An exported folder: the card and its source files.

    Returns:
        One message for each, with its line; empty if all numbers have a source.

    Raises:
        InputError: If there is no card, or its metadata is not that of a card.
    """
    path, files = folder / CARD, SourceFiles(folder)
    if not path.is_file():
        raise InputError(f"{folder} has no card", expected=f"a {CARD}")
    text = read_text(path)
    parts = _CARD.match(text)
    # Blank lines in front give messages the line numbers of the file.
    metadata = parse_yaml(f"\n{parts['yaml']}", f"the metadata of {path}") if parts else None
    if parts is None or not isinstance(metadata, dict):
        raise InputError(f"{path} has no metadata", expected="YAML between two lines of ---")
    try:
        problems = [f"metadata: {p}" for p in _in_metadata(metadata, files, parts["title"])]
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"the metadata of {path} cannot be read",
            expected="model-index: a list of models with a list of results",
            found=str(error),
        ) from None
    blocks = [parts[0]]
    if files.has(RECIPE):
        blocks.append(f"```yaml\n{(folder / RECIPE).read_text(encoding='utf-8')}```")
    for block in blocks:
        text = text.replace(block, "\n" * block.count("\n"))
    for number, line in enumerate(text.split("\n"), start=1):
        problems += [f"line {number}: {problem}" for problem in _in_line(line, files)]
    return problems


def _in_line(line: str, files: SourceFiles) -> Iterator[str]:
    """Yield what is wrong with the numbers in a line of the text."""
    rest, refs = line, []
    for mark in _MARK.finditer(line):
        ref = FieldRef(mark[1], mark[3], int(mark[2]) if mark[2] else None)
        refs.append(ref.describe())
        shown = ""
        try:
            value = files.value(ref)
            shown, expected = _compared(line[: mark.start()], value)
            if shown != expected:
                yield f"{shown}, but {ref.describe()} has {ref.field} = {value}"
        except InputError as error:
            yield str(error)
        if ref.describe() not in line:
            yield f"a number from {ref.describe()}, which the line does not name"
        start = mark.start() - len(shown)
        rest = rest[:start] + " " * (mark.end() - start) + rest[mark.end() :]
    for words in sorted(refs, key=len, reverse=True):
        rest = rest.replace(words, " ")
    if files.has(SHARDS):  # commands cannot hold marks
        for option in files.command_options():
            rest = re.sub(rf"{re.escape(option)}(?!\S)", " ", rest)
    yield from _bare_numbers(rest)


def _compared(before: str, value: Any) -> tuple[str, str]:
    """Return the end of a text that should be a value, and the value in the same format."""
    value = len(value) if isinstance(value, dict | list) else value
    number = _LAST_NUMBER.search(before)
    if number is None or not isinstance(value, int | float):
        return before[max(0, len(before) - len(str(value))) :], str(value)
    shown = number[0]
    mantissa, _, exponent = shown.rstrip("%").lower().partition("e")
    comma = "," if "," in mantissa else ""
    decimals = len(mantissa.partition(".")[2])
    kind = "e" if exponent else "%" if shown.endswith("%") else "f"
    return shown, f"{value:{comma}.{decimals}{kind}}"


def _in_metadata(metadata: dict[str, Any], files: SourceFiles, title: str) -> Iterator[str]:
    """Yield what is wrong with the numbers in the metadata; the checked results are removed."""
    data = [str(files.value(ref)) for ref in (TRAINED_ON, EVALUATED_ON) if files.has(ref.file)]
    data += [UNVERIFIED_PREFIX + name for name in data]
    names = {title, *data, *(name + REAL_SUFFIX for name in data)}
    for model in metadata.get("model-index", []):
        for result in model.get("results", []):
            for metric in result.get("metrics", []):
                yield from _in_metric(metric.pop("value", None), metric.pop("args", None), files)
    for leaf in _leaves(metadata):
        if leaf not in names:
            yield from _bare_numbers(leaf)


def _in_metric(shown: Any, arguments: Any, files: SourceFiles) -> Iterator[str]:
    """Yield what is wrong with one metric of the metadata."""
    try:
        ref = FieldRef(arguments["file"], arguments["field"], arguments.get("line"))
        value = files.value(ref)
    except (KeyError, TypeError):
        yield f"{shown} has no source"
    except InputError as error:
        yield str(error)
    else:
        if value != shown or arguments != ref.as_arguments():
            yield f"{shown}, but {ref.describe()} has {ref.field} = {value}"


def _bare_numbers(text: str) -> Iterator[str]:
    for number in _NUMBER.finditer(_NAMES.sub(" ", _LINK_TARGET.sub("]", text))):
        yield f"{number[0]} has no source"


def _leaves(node: Any) -> Iterator[str]:
    """Yield all keys and scalars of a YAML document as text."""
    if isinstance(node, dict):
        node = [*node.keys(), *node.values()]
    if isinstance(node, list):
        for child in node:
            yield from _leaves(child)
    else:
        yield str(node)
