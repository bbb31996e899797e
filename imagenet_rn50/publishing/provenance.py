"""Where a number in a card comes from: a file that is published beside it, and a place in it.

The packing that a run's shards came from, as a command, by what shards.json says of it.

Checks a card: every number in it stands in a file beside it, where the card says (contract 8).

A number is whatever begins with a digit, and a percentage or decimal that clings to a letter, too;
outside the title, the targets of links, the names in `_NAMES`, and a verbatim copy of recipe.yaml.
In the text it must be followed by the mark of its place, and its line must name that place in
words; in the metadata it must be a result whose arguments name the place.
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
        """Return the comment that follows a number from here; nobody sees it on the page."""
        line = f":{self.line}" if self.line else ""
        return f"<!--{self.file}{line} {self.field}-->"

    def in_words(self) -> str:
        """Return what the readers of the card see of it, in the same line as the number."""
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
    """Return the places that a line of a card names, and where their comments begin and end."""
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
        """Return whether there is such a file."""
        return (self.folder / file).is_file()

    def value(self, place: Place) -> Any:
        """Return what stands at a place.

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
        """Return a value, formatted, with the mark that says where it comes from.

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
        """Return what stands at a place; the default where nobody recorded it."""
        try:
            return self.value(place)
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
                raise InputError(f"there is no evidence {file} beside the card")
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


def packing_command(evidence: Evidence) -> str:
    """Return the command that makes such shards, or the manifest of shards that others packed."""
    dataset, *words = packing_words(evidence)
    if _options(evidence).get("indexed"):
        return f"python shard_imagenet.py index --shards SHARDS {dataset}"
    command = f"python shard_imagenet.py pack --source SOURCE --out SHARDS {dataset}"
    return command + (_NEXT + " ".join(words) if words else "")


def packing_words(evidence: Evidence) -> list[str]:
    """Return the options that differ from pack's own, each with its value; the data set first."""
    options = _options(evidence)
    changed = {
        name: options[name]
        for name, default in _DEFAULTS.items()
        if name != "dataset" and name in options and options[name] != default
    }
    return [f"--dataset {shlex.quote(str(evidence.value(TRAINED_ON)))}"] + [
        _word(name, value) for name, value in changed.items()
    ]


def packing_remark(evidence: Evidence) -> str:
    """Return what else is to be known before packing, to end a sentence with; maybe nothing."""
    options = _options(evidence)
    if not options:
        return ".\nWith which options they were packed is not recorded"
    if options.get("indexed"):
        return ".\nOthers packed them, and SHARDS holds their files"
    layout = f".\nSOURCE is laid out as `{options['layout']}`" if "layout" in options else ""
    return layout + (", and packing needs `jpegtran`" if options.get("restart_blocks") else "")


def _word(name: str, value: Any) -> str:
    """Return an option as the command takes it."""
    flag = "--" + name.replace("_", "-")
    if value is True:
        return flag
    return f"{flag} {'none' if value is None else shlex.quote(str(value))}"


def _options(evidence: Evidence) -> dict[str, Any]:
    """Return the manifest's options; none where the run was begun before they were recorded."""
    try:
        options = evidence.value(Place(SHARDS, "options"))
    except InputError:
        return {}
    return options if isinstance(options, dict) else {}


_NUMBER = re.compile(r"(?<![\w.])[-+]?\.?\d[\d.,]*(?:[eE][-+]?\d+)?%?|\d[\d,]*(?:\.\d+)?%|\d+\.\d+")
_SHOWN = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?%?$")
_NAMES = re.compile(r"\b(ResNet-50s?|v1\.5|top-[15]|ImageNet-1k|95% interval|apache-2\.0)\b", re.I)
_LINK_TARGET = re.compile(r"\]\([^()\s]*\)")
_TITLE = re.compile(r"\s*# (.+)\n")
_FRONT_MATTER = re.compile(r"\A---\n(.*?\n)---\n", re.S)


def untraced(folder: Path) -> list[str]:
    """Find the numbers of a card that no evidence bears out.

    Args:
        folder: An exported folder: the card, and its evidence beside it.

    Returns:
        One sentence for each, naming line and number; none where the card holds.

    Raises:
        InputError: When there is no card, or its metadata are none.
    """
    path = folder / CARD
    if not path.is_file():
        raise InputError(f"{folder} has no card", expected=f"a {CARD}")
    evidence, (front, metadata, body) = Evidence(folder), _parts(path)
    name = ""
    if title := _TITLE.match(body):
        name, body = title[1], "\n" * title[0].count("\n") + body[title.end() :]
    try:
        problems = list(_in_metadata(metadata, evidence, name))
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"the metadata of {path} are laid out in no way that is known",
            expected="model-index: a list of models with a list of results",
            found=str(error),
        ) from None
    body = "\n" * front.count("\n") + _without_recipe(body, evidence)
    for number, line in enumerate(body.split("\n"), start=1):
        problems += [f"line {number}: {problem}" for problem in _in_line(line, evidence)]
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


def place_arguments(place: Place) -> dict[str, Any]:
    """Return what names a place in the arguments of a metric of the metadata."""
    return {"source": place.in_words(), "file": place.file, "field": place.field} | (
        {"line": place.line} if place.line else {}
    )


def _in_line(line: str, evidence: Evidence) -> Iterator[str]:
    """Yield what is wrong with the numbers in a line of the text."""
    rest = line
    for place, start, end in marks(line):
        before = line[:start]
        length, problem = _borne_out(before, place, evidence)
        if problem:
            yield problem
        if place.in_words() not in line:
            yield f"a number from {place.in_words()}, which the line does not name"
        # Blanked, so that what follows stays where it was.
        rest = _blank(rest, start - length, end)
    for words in sorted((place.in_words() for place, _, _ in marks(line)), key=len, reverse=True):
        rest = rest.replace(words, " ")
    if evidence.has(TRAINED_ON.file):  # in a command there is no place for a mark
        for words in packing_words(evidence):
            rest = re.sub(rf"{re.escape(words)}(?!\S)", " ", rest)
    yield from _bare_numbers(rest)


def _borne_out(before: str, place: Place, evidence: Evidence) -> tuple[int, str | None]:
    """Compare what stands before a mark with its place.

    Returns:
        How many characters belong to the value, and what is wrong, if anything.
    """
    try:
        value = evidence.value(place)
    except InputError as error:
        return 0, str(error)
    if isinstance(value, str):
        fits = before.endswith(value)
        return (len(value), None) if fits else (0, f"{place.in_words()} has {value!r}")
    if isinstance(value, dict | list):
        value = len(value)
    shown = _SHOWN.search(before)
    if shown is None or not isinstance(value, int | float):
        return 0, f"no number before the mark of {place.in_words()}"
    if shown[0] != _like(shown[0], value):
        wrong = f"{shown[0]}, but {place.in_words()} has {place.field} = {value}"
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


def _in_metadata(metadata: dict[str, Any], evidence: Evidence, title: str) -> Iterator[str]:
    """Yield what is wrong with the numbers in the metadata."""
    known = [str(evidence.value(p)) for p in (TRAINED_ON, EVALUATED_ON) if evidence.has(p.file)]
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
                yield from _in_metric(metric, evidence)
                metric.pop("args", None)
                metric.pop("value", None)
    for leaf in _leaves(metadata):
        for problem in _bare_numbers(leaf):
            yield f"metadata: {problem}"


def _in_metric(metric: dict[str, Any], evidence: Evidence) -> Iterator[str]:
    """Yield what is wrong with one metric of the metadata."""
    arguments = metric.get("args") or {}
    try:
        place = Place(arguments["file"], arguments["field"], arguments.get("line"))
        value = evidence.value(place)
    except (KeyError, TypeError):
        yield f"metadata: {metric.get('value')} has no source"
        return
    except InputError as error:
        yield f"metadata: {error}"
        return
    if value != metric.get("value") or arguments != place_arguments(place):
        yield f"metadata: {metric.get('value')}, but {place.in_words()} has {place.field} = {value}"


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


def _without_recipe(body: str, evidence: Evidence) -> str:
    """Blank the verbatim copy of recipe.yaml, keeping the count of lines."""
    if not evidence.has(RECIPE):
        return body
    block = f"```yaml\n{(evidence.folder / RECIPE).read_text(encoding='utf-8')}```"
    return body.replace(block, "\n" * block.count("\n"))


def _blank(text: str, start: int, end: int) -> str:
    """Replace a part of a text by as many blanks."""
    return text[:start] + " " * (end - start) + text[end:]
