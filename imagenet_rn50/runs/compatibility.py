"""The continuity guard: what may differ between a run and what goes on with it, and by whose word.

A run that goes on under another recipe, over other shards or in another precision is another run,
and nothing would tell. So each difference is refused with both values, unless it is named on the
command line.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from imagenet_rn50.recipe import Recipe, flatten
from imagenet_rn50.utils.errors import InputError

SHARDS, PRECISION, LEARNING_RATE = "shards", "mixed_precision", "learning_rate"
_FIXED = ("model", "optimizer.name", "seed")
"""Changing these makes the saved state meaningless, or the samples seen so far."""


@dataclass(frozen=True)
class Change:
    """One thing that is no longer as it was.

    Attributes:
        key: Its name, as --allow-change takes it.
        then: What it was.
        now: What it would be.
    """

    key: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.then} -> {self.now}"


def changes_of_recipe(then: Recipe, now: Recipe) -> list[Change]:
    """Returns each hyperparameter that differs."""
    before, after = (dict(flatten(recipe.model_dump())) for recipe in (then, now))
    return [Change(key, before[key], value) for key, value in after.items() if before[key] != value]


def check_names(allowed: tuple[str, ...]) -> None:
    """Makes sure that what was allowed to change exists and can change.

    Args:
        allowed: Names of fields of the recipe or of its sections, or the other names of this file.

    Raises:
        InputError: Naming the nearest valid key.
    """
    keys = [key for key, _ in flatten(Recipe().model_dump())]
    sections = {key.partition(".")[0] for key in keys}
    valid = {*keys, *sections, SHARDS, PRECISION, LEARNING_RATE}
    for name in allowed:
        if name not in valid:
            near = difflib.get_close_matches(name, sorted(valid), n=1, cutoff=0.0)
            raise InputError(
                f"--allow-change {name}: there is nothing of that name",
                expected="a field of the recipe, shards, mixed_precision or learning_rate",
                fix=f"did you mean {near[0]}?",
            )
        if _covers(_FIXED, name):
            raise InputError(
                f"--allow-change {name}: it cannot change within a run",
                expected="the same model, update rule and order of samples from start to end",
                fix="begin another run with --run",
            )


def check_compatible(changes: list[Change], allowed: tuple[str, ...], *, subject: str) -> None:
    """Refuses changes that nobody asked for.

    Args:
        changes: What differs.
        allowed: Names of fields or sections that may.
        subject: Whose values those before are: a sentence, for the message.

    Raises:
        InputError: With both values of each change that is not allowed.
    """
    fixed = [change for change in changes if _covers(_FIXED, change.key)]
    refused = fixed or [change for change in changes if not _covers(allowed, change.key)]
    if not refused:
        return
    names = " ".join(f"--allow-change {change.key}" for change in refused)
    fix = "name another folder with --run, or drop the changes"
    raise InputError(
        subject,
        expected="; ".join(f"{change.key} = {change.then}" for change in refused),
        found="; ".join(str(change) for change in refused) + "  (there -> asked for)",
        fix=fix if fixed else f"{fix}, or say that you mean them: {names}",
    )


def _covers(names: tuple[str, ...], key: str) -> bool:
    """Says whether a key, or the section that it is in, is among the names."""
    return key in names or key.partition(".")[0] in names
