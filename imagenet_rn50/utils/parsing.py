"""Parse YAML and JSON strictly: duplicates and ambiguous values are errors.

YAML is parsed by the core schema of YAML 1.2. PyYAML reads YAML 1.1, where `1:30` is 90, `no` is
false, `010` is 8, `1e-3` is a string, and the last of two equal keys wins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from typing import Any, NoReturn

import yaml

from imagenet_rn50.utils.errors import InputError

_JSON_TOKEN = re.compile(r'[{}\[\]]|"(?:[^"\\]|\\.)*"(?=\s*(:)?)')


def parse_yaml(text: str, source: str) -> Any:
    """Parse one YAML document.

    Args:
        text: The document.
        source: Where it comes from, for messages.

    Raises:
        InputError: If it is empty or not YAML, or has a duplicate key, a key that is not a
            string, an anchor, an alias, a tag, a merge key or a second document.
    """
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        found = where + ", ".join(part for part in (error.context, error.problem) if part)
        raise InputError(f"{source} is not valid YAML", found=found) from None
    except (yaml.YAMLError, RecursionError) as error:
        found = " ".join(str(error).split())
        raise InputError(f"{source} is not valid YAML", found=found) from None
    if content is None:
        raise InputError(f"{source} is empty", expected="keys and values")
    return content


def parse_json(text: str | bytes, source: str) -> Any:
    """Parse JSON.

    Args:
        text: The JSON; bytes are UTF-8.
        source: Where it comes from, for messages.

    Raises:
        InputError: If it is not JSON, or has a duplicate key, NaN or Infinity.
    """
    try:
        return _decoder.decode(text if isinstance(text, str) else text.decode("utf-8"))
    except _DuplicateKeyError:
        found = _first_duplicate(text if isinstance(text, str) else text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        found = str(error)
    raise InputError(f"{source} is not valid JSON", found=found) from None


class _DuplicateKeyError(ValueError):
    """An object has a duplicate key; the decoder does not know the lines."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise _DuplicateKeyError
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _first_duplicate(text: str) -> str:
    """Return the first duplicate key of a JSON text with both of its lines."""
    scopes: list[dict[str, int]] = []
    for token in _JSON_TOKEN.finditer(text):
        if token[0] in "{[":
            scopes.append({})
        elif token[0] in "}]":
            scopes.pop()
        elif token[1]:
            key, line = json.loads(token[0]), text.count("\n", 0, token.start()) + 1
            if key in scopes[-1]:
                return _duplicate(key, scopes[-1][key], line)
            scopes[-1][key] = line
    return "duplicate key"


def _duplicate(key: str, first: int, second: int) -> str:
    return f"duplicate key {key!r} in lines {first} and {second}"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, without anchors, aliases, tags and merge keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # not YAML 1.1's

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse anchors, aliases and tags, which recipes and tables do not need."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            problem = "anchors, aliases and tags are not supported: write the value out"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping whose keys are distinct strings."""
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str) or key == "<<":
                what = "merge keys are not supported" if key == "<<" else "keys must be strings"
                self._refuse(f"{what}, got {key!r}", key_node)
            if key in lines:
                self._refuse(_duplicate(key, lines[key], line), key_node)
            lines[key] = line
        values = (self.construct_object(value, deep=deep) for _, value in node.value)
        return dict(zip(lines, values, strict=True))

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return an integer; `010` is ten, `0o10` is eight."""
        return int(node.value, 0 if node.value[:2] in {"0o", "0x"} else 10)

    @staticmethod
    def _refuse(problem: str, node: yaml.Node) -> NoReturn:
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _name, _pattern, _first in (  # https://yaml.org/spec/1.2.2/#1032-tag-resolution
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), _first
    )
