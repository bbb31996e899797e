"""Compatibility of a run with the command that resumes it.

With another recipe, other shards or another precision it would be another run, and nothing would
show it. So each difference is an error that names both values, unless --allow-change permits it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from imagenet_rn50.recipe import Recipe, flatten
from imagenet_rn50.utils.errors import InputError

SHARDS, PRECISION, LEARNING_RATE = "shards", "mixed_precision", "learning_rate"
_FIXED = ("model", "optimizer.name", "seed")
"""May never change: the saved state, or the samples seen so far, would become meaningless."""


@dataclass(frozen=True)
class Change:
    """One difference between a run and the command that resumes it.

    Attributes:
        key: Its name, as --allow-change takes it.
        then: Value of the run.
        now: Requested value.
    """

    key: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.then} -> {self.now}"


def changes_of_recipe(then: Recipe, now: Recipe) -> list[Change]:
    """Return the hyperparameters that differ."""
    before, after = (dict(flatten(recipe.model_dump())) for recipe in (then, now))
    return [Change(key, before[key], value) for key, value in after.items() if before[key] != value]


def check_names(allowed: tuple[str, ...]) -> None:
    """Check that the names given to --allow-change exist and may change.

    Args:
        allowed: Fields or sections of the recipe, `shards`, `mixed_precision`, `learning_rate`.

    Raises:
        InputError: If one does not exist, naming the nearest valid one; or if it can never change.
    """
    keys = [key for key, _ in flatten(Recipe().model_dump())]
    sections = {key.partition(".")[0] for key in keys}
    valid = {*keys, *sections, SHARDS, PRECISION, LEARNING_RATE}
    for name in allowed:
        if name not in valid:
            near = difflib.get_close_matches(name, sorted(valid), n=1, cutoff=0.0)
            raise InputError(
                f"--allow-change {name}: unknown name",
                expected="a field of the recipe, shards, mixed_precision or learning_rate",
                fix=f"did you mean {near[0]}?",
            )
        if _covers(_FIXED, name):
            raise InputError(
                f"--allow-change {name}: it cannot change within a run",
                expected="the same model, optimizer and seed throughout a run",
                fix="start a new run with another --run",
            )


def check_compatible(changes: list[Change], allowed: tuple[str, ...], *, subject: str) -> None:
    """Raise an error for changes that are not allowed.

    Args:
        changes: All differences.
        allowed: Fields or sections that may change.
        subject: First line of the message: what has the old values.

    Raises:
        InputError: With both values of each change that is not allowed.
    """
    fixed = [change for change in changes if _covers(_FIXED, change.key)]
    refused = fixed or [change for change in changes if not _covers(allowed, change.key)]
    if not refused:
        return
    names = " ".join(f"--allow-change {change.key}" for change in refused)
    fix = "choose another --run, or undo the changes"
    raise InputError(
        subject,
        expected="; ".join(f"{change.key} = {change.then}" for change in refused),
        found="; ".join(str(change) for change in refused) + "  (run -> requested)",
        fix=fix if fixed else f"{fix}, or allow them: {names}",
    )


def _covers(names: tuple[str, ...], key: str) -> bool:
    """Return whether a key, or its section, is among the names."""
    return key in names or key.partition(".")[0] in names
