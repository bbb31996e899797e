"""Read what the header of a shipped recipe states: source, published accuracy, differences."""

from __future__ import annotations

import math
import re

from imagenet_rn50.recipe import RECIPES, recipe_names


def percent_as_given(top1: float) -> str:
    """Return a top-1 in percent with the digits it was given with, at least one."""
    digits = next((n for n in range(1, 6) if math.isclose(round(top1, n + 2), top1)), 6)
    return f"{top1:.{digits}%}"


def published_line(name: str) -> str:
    """Return the published accuracy of a recipe, as its header states it."""
    found = header_field(name, "published") or header_field(name, "expected")
    return found or "unknown: the recipe names no published accuracy"


def published_top1(name: str) -> float | None:
    """Return the published top-1 of a recipe in [0, 1], or None if its header names none."""
    found = re.match(r"(\d+(?:\.\d+)?)%", published_line(name))
    return float(found[1]) / 100 if found else None


def header_field(name: str, field: str) -> str | None:
    """Return a field of the header of a shipped recipe in one line, or None if it is absent."""
    if name not in recipe_names():
        return None
    header = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    found = re.search(rf"^# +{field} +(.*(?:\n# {{8,}}.*)*)", header, re.MULTILINE)
    return re.sub(r"\n# +", " ", found[1]) if found else None
