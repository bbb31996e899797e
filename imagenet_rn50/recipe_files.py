"""Recipe files: from YAML to a `Recipe`, with messages that name key, value, nearest valid key."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from imagenet_rn50.errors import InputError
from imagenet_rn50.files import read_yaml
from imagenet_rn50.recipe import Recipe, flatten

RECIPES = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """Returns the names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_file: str) -> Recipe:
    """Reads a recipe by its name, or from a YAML file.

    Args:
        name_or_file: One of `recipe_names()`, or the path of a file that ends in .yaml or .yml.

    Raises:
        InputError: When there is no such recipe, or the file has an unknown key or a wrong value.
    """
    is_file = name_or_file.endswith((".yaml", ".yml"))
    path = Path(name_or_file) if is_file else RECIPES / f"{name_or_file}.yaml"
    if not path.is_file() or not (is_file or name_or_file in recipe_names()):
        names = recipe_names()
        near = difflib.get_close_matches(name_or_file, names, n=1)
        raise InputError(
            f"there is no recipe {name_or_file!r}",
            expected=f"one of {', '.join(names)}, or a .yaml file",
            fix=f"did you mean {near[0]!r}?" if near else None,
        )
    return parse_recipe(read_yaml(path), source=str(path))


def parse_recipe(content: Any, source: str) -> Recipe:
    """Validates what a YAML or JSON file held.

    Args:
        content: A mapping of field names to values; what it leaves out keeps its default.
        source: Where it came from, for messages.

    Raises:
        InputError: Naming each key that is unknown or wrong, its value, and the nearest valid key.
    """
    if not isinstance(content, dict):
        raise InputError(
            f"{source} is not a recipe", expected="keys and values", found=f"{content}"
        )
    try:
        # Through JSON, because lists become tuples there while all else stays strict.
        return Recipe.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise InputError(f"{source} is not a valid recipe: {explain(error)}") from None
    except TypeError as error:
        raise InputError(f"{source} is not a valid recipe", found=str(error)) from None


def explain(error: ValidationError) -> str:
    """Returns each wrong key with its value and what is wrong with it, in one line."""
    return "; ".join(_describe(problem) for problem in error.errors(include_url=False))


def _describe(problem: Any) -> str:
    """Says what is wrong with one key, in one line."""
    location = [str(part) for part in problem["loc"]]
    key, value = ".".join(location), problem["input"]
    if problem["type"] != "extra_forbidden":
        reason = problem["msg"].removeprefix("Value error, ")
        return f"{key} = {value!r}: {reason[0].lower()}{reason[1:]}" if key else reason
    valid = [name for name, _ in flatten(Recipe().model_dump())]
    valid += [name for name, value in Recipe() if isinstance(value, BaseModel)]
    near = max(valid, key=lambda candidate: _likeness(key, candidate))
    return f"unknown key {key} = {value!r}; the nearest valid key is {near}"


def _likeness(key: str, candidate: str) -> float:
    """Returns how likely a person who wrote `key` meant `candidate`; `learning_rate` means `lr`."""
    initials = "".join(word[0] for word in key.rpartition(".")[2].split("_") if word)
    ratio = difflib.SequenceMatcher(None, key, candidate).ratio()
    return ratio + (candidate.rpartition(".")[2] == initials)
