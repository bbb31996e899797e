"""Provenance of a card's numbers: each comes from a field of a file beside the card (contract 8).

A `FieldRef` names a file and a field in it. `SourceFiles` reads those files and cites their values
for `model_card`; `unsourced_numbers` reads a finished card and checks each number against its file.

A number is whatever begins with a digit, and a percentage or decimal that follows a letter; outside
the title, link targets, the names in `_NAMES`, and a verbatim copy of recipe.yaml. In the text it
must be followed by the comment of its `FieldRef`, and its line must name the source in words. In
the metadata it must be a result whose arguments name the field.
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
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_text
from imagenet_rn50.utils.parsing import parse_json, parse_yaml

PUBLISHED = "published.yaml"
"""Figures of others, with their sources; it belongs to this package, not to a model."""

_MARK = re.compile(r"<!--([\w.-]+?)(?::(\d+))? ([\w.-]+)-->")


@dataclass(frozen=True)
class FieldRef:
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
        """Return the comment that follows a number from here; nobody sees it on the page."""
        line = f":{self.line}" if self.line else ""
        return f"<!--{self.file}{line} {self.field}-->"

    def describe(self) -> str:
        """Return what the readers of the card see of it, in the same line as the number."""
        if self.file == METRICS:
            return f"{METRICS} line {self.line}" if self.line else f"{METRICS}, all lines"
        if self.file == PUBLISHED:
            return "not reproduced here"
        if self.file == EVALUATION and self.field.startswith("results."):
            return f"{EVALUATION} {'.'.join(self.field.split('.')[:2])}"
        return self.file


TRAINED_ON = FieldRef(SHARDS, "dataset")
EVALUATED_ON = FieldRef(EVALUATION, "dataset.name")
UNVERIFIED_PREFIX = "unverified-"
"""What the card's metadata puts before ImageNet-1k's name where the data was not shown to be it."""
REAL, REAL_SUFFIX = "real", "-real"
"""Results by ImageNet-ReaL's labels: their name in metrics.json, and what the card's metadata adds
to the name of the pictures' data set."""


def find_refs(text: str) -> list[tuple[FieldRef, int, int]]:
    """Return the refs that a line of a card names, and where their comments begin and end."""
    return [
        (FieldRef(m[1], m[3], int(m[2]) if m[2] else None), m.start(), m.end())
        for m in _MARK.finditer(text)
    ]


@dataclass(frozen=True)
class SourceFiles:
    """The files that a card's numbers come from.

    Args:
        folder: Where they stand, beside the card.
    """

    folder: Path
    _read: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def has(self, file: str) -> bool:
        """Return whether there is such a file."""
        return (self.folder / file).is_file()

    def value(self, ref: FieldRef) -> Any:
        """Return what stands at a ref.

        Raises:
            InputError: When there is no such ref.
        """
        content = self._content(ref.file)
        if ref.file == METRICS:
            if ref.line is None:
                content = summary(content)
            elif not 1 <= ref.line <= len(content):
                raise InputError(f"{ref.file} has no line {ref.line}")
            else:
                content = content[ref.line - 1]
        for key in ref.field.split("."):
            try:
                content = content[int(key) if isinstance(content, list) else key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise InputError(f"{ref.describe()} has no {ref.field}") from None
        return content

    def cite(self, ref: FieldRef, spec: str = "") -> str:
        """Return a value, formatted, with the mark that says where it comes from.

        Args:
            ref: Where it stands; of a table, its length is meant.
            spec: How to format it, as in an f-string.
        """
        value = self.value(ref)
        shown = len(value) if isinstance(value, dict | list) else value
        return f"{shown:{spec}}{ref.mark()}"

    def trained_on_imagenet1k(self, split: str = "train") -> bool:
        """Return whether a split of the shards of the training was shown to be ImageNet-1k's."""
        return split in self._known(FieldRef(SHARDS, "imagenet1k_splits"), [])

    def evaluated_on_imagenet1k(self) -> bool:
        """Return whether what was evaluated on was shown to be ImageNet-1k's."""
        return self._known(FieldRef(EVALUATION, "dataset.is_imagenet1k"), False) is True

    def is_imagenet1k(self) -> bool:
        """Return whether the data of the training, or else of the evaluation, was shown to be."""
        if self.has(TRAINED_ON.file):
            return self.trained_on_imagenet1k()
        return self.evaluated_on_imagenet1k()

    def cite_data(self, ref: FieldRef, is_imagenet1k: bool) -> str:
        """Return the name of a data set as `cite` does, without the claim that it may be."""
        doubt = " (not shown to be ImageNet-1k)"
        is_claim = is_name(str(self.value(ref))) and not is_imagenet1k
        return self.cite(ref) + doubt * is_claim

    def _known(self, ref: FieldRef, default: Any) -> Any:
        """Return what stands at a ref; the default where nobody recorded it."""
        try:
            return self.value(ref)
        except InputError:
            return default

    def init_from(self) -> int | None:
        """Return the line that says whose weights training began with; None for fresh ones."""
        return next((n for n, record in self.lines(START) if "init_from" in record), None)

    def summary(self) -> dict[str, Any]:
        """Return the figures about all lines of metrics.jsonl."""
        return summary(self._content(METRICS))

    def lines(self, kind: str) -> list[tuple[int, dict[str, Any]]]:
        """Return the lines of one kind in metrics.jsonl, with their numbers, from 1."""
        records = self._content(METRICS) if self.has(METRICS) else []
        return [(n, record) for n, record in enumerate(records, start=1) if record["kind"] == kind]

    def _content(self, file: str) -> Any:
        """Return what a file holds, read once.

        Raises:
            InputError: When there is no such file, or it is damaged.
        """
        if file not in self._read:
            reader = _READERS.get(file)
            path = (Path(__file__).parent if file == PUBLISHED else self.folder) / file
            if reader is None or not path.is_file():
                raise InputError(f"there is no files {file} beside the card")
            self._read[file] = reader(read_text(path), str(path))
        return self._read[file]


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return figures about all lines of a metrics.jsonl.

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


_DEFAULTS = PackOptions(restart_blocks="auto").as_dict()
"""Of the command; `auto` is what it makes of jpegtran's being installed."""
_NEXT = " \\\n    "  # a command goes on in the next line


def pack_command(files: SourceFiles) -> str:
    """Return the command that makes such shards, or the manifest of shards that others packed."""
    dataset, *words = pack_options(files)
    if _options(files).get("indexed"):
        return f"python shard_imagenet.py index --shards SHARDS {dataset}"
    command = f"python shard_imagenet.py pack --source SOURCE --out SHARDS {dataset}"
    return command + (_NEXT + " ".join(words) if words else "")


def pack_options(files: SourceFiles) -> list[str]:
    """Return the options that differ from pack's own, each with its value; the data set first."""
    options = _options(files)
    changed = {
        name: options[name]
        for name, default in _DEFAULTS.items()
        if name != "dataset" and name in options and options[name] != default
    }
    return [f"--dataset {shlex.quote(str(files.value(TRAINED_ON)))}"] + [
        _as_option(name, value) for name, value in changed.items()
    ]


def pack_note(files: SourceFiles) -> str:
    """Return what else is to be known before packing, to end a sentence with; maybe nothing."""
    options = _options(files)
    if not options:
        return ".\nWith which options they were packed is not recorded"
    if options.get("indexed"):
        return ".\nOthers packed them, and SHARDS holds their files"
    layout = f".\nSOURCE is laid out as `{options['layout']}`" if "layout" in options else ""
    return layout + (", and packing needs `jpegtran`" if options.get("restart_blocks") else "")


def _as_option(name: str, value: Any) -> str:
    """Return an option as the command takes it."""
    flag = "--" + name.replace("_", "-")
    if value is True:
        return flag
    return f"{flag} {'none' if value is None else shlex.quote(str(value))}"


def _options(files: SourceFiles) -> dict[str, Any]:
    """Return the manifest's options; none where the run was begun before they were recorded."""
    try:
        options = files.value(FieldRef(SHARDS, "options"))
    except InputError:
        return {}
    return options if isinstance(options, dict) else {}


_NUMBER = re.compile(r"(?<![\w.])[-+]?\.?\d[\d.,]*(?:[eE][-+]?\d+)?%?|\d[\d,]*(?:\.\d+)?%|\d+\.\d+")
_SHOWN = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?%?$")
_NAMES = re.compile(r"\b(ResNet-50s?|v1\.5|top-[15]|ImageNet-1k|95% interval|apache-2\.0)\b", re.I)
_LINK_TARGET = re.compile(r"\]\([^()\s]*\)")
_TITLE = re.compile(r"\s*# (.+)\n")
_FRONT_MATTER = re.compile(r"\A---\n(.*?\n)---\n", re.S)


def unsourced_numbers(folder: Path) -> list[str]:
    """Find the numbers of a card that have no source, or another value there.

    Args:
        folder: An exported folder: the card and the files beside it.

    Returns:
        One sentence for each, naming line and number; none where the card holds.

    Raises:
        InputError: When there is no card, or its metadata are none.
    """
    path = folder / CARD
    if not path.is_file():
        raise InputError(f"{folder} has no card", expected=f"a {CARD}")
    files, (front, metadata, body) = SourceFiles(folder), _parts(path)
    name = ""
    if title := _TITLE.match(body):
        name, body = title[1], "\n" * title[0].count("\n") + body[title.end() :]
    try:
        problems = list(_in_metadata(metadata, files, name))
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"the metadata of {path} are laid out in no way that is known",
            expected="model-index: a list of models with a list of results",
            found=str(error),
        ) from None
    body = "\n" * front.count("\n") + _without_recipe(body, files)
    for number, line in enumerate(body.split("\n"), start=1):
        problems += [f"line {number}: {problem}" for problem in _in_line(line, files)]
    return problems


def _parts(path: Path) -> tuple[str, dict[str, Any], str]:
    """Return a card's front matter, as it stands and as it is read, and its text.

    Raises:
        InputError: When it is not a card.
    """
    text = read_text(path)
    front = _FRONT_MATTER.match(text)
    # A line in front, so that messages count as the file does.
    metadata = parse_yaml(f"\n{front[1]}", f"the metadata of {path}") if front else None
    if front is None or not isinstance(metadata, dict):
        raise InputError(f"{path} has no metadata", expected="YAML between two lines of ---")
    return front[0], metadata, text[front.end() :]


def ref_arguments(ref: FieldRef) -> dict[str, Any]:
    """Return what names a ref in the arguments of a metric of the metadata."""
    return {"source": ref.describe(), "file": ref.file, "field": ref.field} | (
        {"line": ref.line} if ref.line else {}
    )


def _in_line(line: str, files: SourceFiles) -> Iterator[str]:
    """Yield what is wrong with the numbers in a line of the text."""
    rest = line
    for ref, start, end in find_refs(line):
        before = line[:start]
        length, problem = _check_value(before, ref, files)
        if problem:
            yield problem
        if ref.describe() not in line:
            yield f"a number from {ref.describe()}, which the line does not name"
        # Blanked, so that what follows stays where it was.
        rest = _blank(rest, start - length, end)
    for words in sorted((ref.describe() for ref, _, _ in find_refs(line)), key=len, reverse=True):
        rest = rest.replace(words, " ")
    if files.has(TRAINED_ON.file):  # in a command there is no ref for a mark
        for words in pack_options(files):
            rest = re.sub(rf"{re.escape(words)}(?!\S)", " ", rest)
    yield from _bare_numbers(rest)


def _check_value(before: str, ref: FieldRef, files: SourceFiles) -> tuple[int, str | None]:
    """Compare what stands before a mark with its ref.

    Returns:
        How many characters belong to the value, and what is wrong, if anything.
    """
    try:
        value = files.value(ref)
    except InputError as error:
        return 0, str(error)
    if isinstance(value, str):
        fits = before.endswith(value)
        return (len(value), None) if fits else (0, f"{ref.describe()} has {value!r}")
    if isinstance(value, dict | list):
        value = len(value)
    shown = _SHOWN.search(before)
    if shown is None or not isinstance(value, int | float):
        return 0, f"no number before the mark of {ref.describe()}"
    if shown[0] != _like(shown[0], value):
        wrong = f"{shown[0]}, but {ref.describe()} has {ref.field} = {value}"
        return len(shown[0]), wrong
    return len(shown[0]), None


def _like(shown: str, value: float) -> str:
    """Return a value written as `shown` is: as percent or not, with as many decimals."""
    bare = shown.rstrip("%")
    comma = "," if "," in bare else ""
    decimals = len(bare.partition(".")[2])
    percent = "%" if shown.endswith("%") else "f"
    if "e" in bare.lower():
        return f"{value:.{len(bare.lower().partition('e')[0].partition('.')[2])}e}"
    return f"{value:{comma}.{decimals}{percent}}"


def _in_metadata(metadata: dict[str, Any], files: SourceFiles, title: str) -> Iterator[str]:
    """Yield what is wrong with the numbers in the metadata."""
    known = [str(files.value(p)) for p in (TRAINED_ON, EVALUATED_ON) if files.has(p.file)]
    known += [UNVERIFIED_PREFIX + name for name in known]
    known += [name + REAL_SUFFIX for name in known]
    if metadata.get("model_name") == title:
        metadata.pop("model_name")  # where nothing was measured there is no model-index
    for model in metadata.get("model-index", []):
        if model.get("name") == title:
            model.pop("name")
        for result in model.get("results", []):
            data = result.get("dataset", {})
            result["dataset"] = {k: v for k, v in data.items() if v not in known}
            for metric in result.get("metrics", []):
                yield from _in_metric(metric, files)
                metric.pop("args", None)
                metric.pop("value", None)
    for leaf in _leaves(metadata):
        for problem in _bare_numbers(leaf):
            yield f"metadata: {problem}"


def _in_metric(metric: dict[str, Any], files: SourceFiles) -> Iterator[str]:
    """Yield what is wrong with one metric of the metadata."""
    arguments = metric.get("args") or {}
    try:
        ref = FieldRef(arguments["file"], arguments["field"], arguments.get("line"))
        value = files.value(ref)
    except (KeyError, TypeError):
        yield f"metadata: {metric.get('value')} has no source"
        return
    except InputError as error:
        yield f"metadata: {error}"
        return
    if value != metric.get("value") or arguments != ref_arguments(ref):
        yield f"metadata: {metric.get('value')}, but {ref.describe()} has {ref.field} = {value}"


def _bare_numbers(text: str) -> Iterator[str]:
    """Yield the numbers in a text that no mark vouches for."""
    for found in _NUMBER.finditer(_NAMES.sub(" ", _LINK_TARGET.sub("]", text))):
        yield f"{found[0]} has no source"


def _leaves(node: Any) -> Iterator[str]:
    """Yield all keys and scalars of a YAML document as text."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key)
            yield from _leaves(value)
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value)
    else:
        yield str(node)


def _without_recipe(body: str, files: SourceFiles) -> str:
    """Blank the verbatim copy of recipe.yaml, keeping the count of lines."""
    if not files.has(RECIPE):
        return body
    block = f"```yaml\n{(files.folder / RECIPE).read_text(encoding='utf-8')}```"
    return body.replace(block, "\n" * block.count("\n"))


def _blank(text: str, start: int, end: int) -> str:
    """Replace a part of a text by as many blanks."""
    return text[:start] + " " * (end - start) + text[end:]
