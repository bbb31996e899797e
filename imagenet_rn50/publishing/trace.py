"""Checks a card: every number in it stands in a file beside it, where the card says (contract 8).

A number is whatever begins with a digit, and a percentage or decimal that clings to a letter, too;
outside the title, the targets of links, the names in `_NAMES`, and a verbatim copy of recipe.yaml.
In the text it must be followed by the mark of its place, and its line must name that place in
words; in the metadata it must be a result whose arguments name the place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagenet_rn50.errors import InputError
from imagenet_rn50.files import read_text
from imagenet_rn50.parsing import parse_yaml
from imagenet_rn50.publishing.evidence import (
    EVALUATED_ON,
    REAL_SUFFIX,
    TRAINED_ON,
    UNVERIFIED_PREFIX,
    Evidence,
    Place,
    marks,
)
from imagenet_rn50.publishing.layout import CARD, RECIPE
from imagenet_rn50.publishing.packed import packing_words

_NUMBER = re.compile(r"(?<![\w.])[-+]?\.?\d[\d.,]*(?:[eE][-+]?\d+)?%?|\d[\d,]*(?:\.\d+)?%|\d+\.\d+")
_SHOWN = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?%?$")
_NAMES = re.compile(r"\b(ResNet-50s?|v1\.5|top-[15]|ImageNet-1k|95% interval|apache-2\.0)\b", re.I)
_LINK_TARGET = re.compile(r"\]\([^()\s]*\)")
_TITLE = re.compile(r"\s*# (.+)\n")
_FRONT_MATTER = re.compile(r"\A---\n(.*?\n)---\n", re.S)


def untraced(folder: Path) -> list[str]:
    """Finds the numbers of a card that no evidence bears out.

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
    """Returns a card's front matter, as it stands and as it is read, and its text.

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
    """Returns what names a place in the arguments of a metric of the metadata."""
    return {"source": place.in_words(), "file": place.file, "field": place.field} | (
        {"line": place.line} if place.line else {}
    )


def _in_line(line: str, evidence: Evidence) -> Iterator[str]:
    """Yields what is wrong with the numbers in a line of the text."""
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
    """Compares what stands before a mark with its place.

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
    """Returns a value written as `shown` is: as percent or not, with as many decimals."""
    bare = shown.rstrip("%")
    comma = "," if "," in bare else ""
    decimals = len(bare.partition(".")[2])
    percent = "%" if shown.endswith("%") else "f"
    if "e" in bare.lower():
        return f"{value:.{len(bare.lower().partition('e')[0].partition('.')[2])}e}"
    return f"{value:{comma}.{decimals}{percent}}"


def _in_metadata(metadata: dict[str, Any], evidence: Evidence, title: str) -> Iterator[str]:
    """Yields what is wrong with the numbers in the metadata."""
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
    """Yields what is wrong with one metric of the metadata."""
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
    """Yields the numbers in a text that no mark vouches for."""
    for found in _NUMBER.finditer(_NAMES.sub(" ", _LINK_TARGET.sub("]", text))):
        yield f"{found[0]} has no source"


def _leaves(node: Any) -> Iterator[str]:
    """Yields all keys and scalars of a YAML document as text."""
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
    """Blanks the verbatim copy of recipe.yaml, keeping the count of lines."""
    if not evidence.has(RECIPE):
        return body
    block = f"```yaml\n{(evidence.folder / RECIPE).read_text(encoding='utf-8')}```"
    return body.replace(block, "\n" * block.count("\n"))


def _blank(text: str, start: int, end: int) -> str:
    """Replaces a part of a text by as many blanks."""
    return text[:start] + " " * (end - start) + text[end:]
