"""Provenance of a card's numbers: each comes from a field of a file beside the card (contract 8).

`model_card` cites values with `SourceFiles.cite`, which appends a comment with file and field to
each. `unsourced_numbers` reads a finished card and compares each number with its source.

A number is whatever begins with a digit, and a percentage or decimal that follows a letter. In the
text, the comment of its `FieldRef` must follow it, and its line must name the file in words. In the
metadata, it must be a result whose arguments name the field. Exempt are names (`_NAMES`, the title,
data sets), link targets, the citation, the copy of recipe.yaml and the recorded options of the
pack command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagenet_rn50.publishing.eval_results import check_eval_results
from imagenet_rn50.publishing.layout import CARD, EVAL_RESULTS, RECIPE, SHARDS
from imagenet_rn50.publishing.snippets import CITATIONS, model_citation
from imagenet_rn50.publishing.source_files import (
    EVALUATED_ON,
    REAL_SUFFIX,
    TRAINED_ON,
    UNVERIFIED_PREFIX,
    FieldRef,
    SourceFiles,
    escape,
)
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_text
from imagenet_rn50.utils.formatting import first_name
from imagenet_rn50.utils.parsing import parse_yaml

_MARK = re.compile(r"<!--([\w./-]+?)(?::(\d+))? ([\w.-]+)-->")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\.?\d[\d.,]*(?:[eE][-+]?\d+)?%?|\d[\d,]*(?:\.\d+)?%|\d+\.\d+")
_LAST_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?%?$")
_NAMES = re.compile(r"\b(ResNet-50s?|v1\.5|top-[15]|ImageNet-1k|95% interval|apache-2\.0)\b", re.I)
_LINK_TARGET = re.compile(r"\]\([^()\s]*\)")
_CARD = re.compile(r"\A(?:---\n(?P<yaml>.*?\n)---\n)(?:\s*# (?P<title>[^\n]+)\n)?", re.S)


def unsourced_numbers(folder: Path) -> list[str]:
    """Find the numbers of a card and of `.eval_results/` that have no source, or differ from it.

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
    problems += [f"{EVAL_RESULTS}: {problem}" for problem in check_eval_results(folder)]
    blocks = [parts[0], *CITATIONS, model_citation(parts["title"] or "")]
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
        text, first = escape(str(value)), escape(first_name(str(value)))
        if before.endswith(first) and not before.endswith(text):
            return first, first  # of a class with several names
        return before[max(0, len(before) - len(text)) :], text
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
    if (base := files.base_model()) is not None:
        names.add(base)
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
