"""Read what the header of a shipped recipe states: source, published accuracy, data, machine."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from imagenet_rn50.recipe import RECIPES, recipe_names
from imagenet_rn50.shards.imagenet1k import NUM_IMAGES
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION

DEFAULT_INSTANCE = "g6.12xlarge"


class DataSet(NamedTuple):
    """The data set on which a recipe's accuracy was published."""

    name: str
    num_train: int
    num_validation: int

    def has_as_many(self, num_train: int) -> bool:
        """Return whether so many training images may be this data set; up to 1% may be missing."""
        return abs(num_train / self.num_train - 1) < 0.01


IMAGENET_1K = DataSet("ImageNet-1k", NUM_IMAGES[TRAIN], NUM_IMAGES[VALIDATION])


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


def published_data(name: str) -> DataSet | None:
    """Return the data set of a recipe's published accuracy, or None if it has none.

    It is ImageNet-1k unless the header has a field `data`: `NAME: TRAIN + VALIDATION images; ...`.
    """
    if header_field(name, "published") is None:
        return None
    data = header_field(name, "data")
    if data is None:
        return IMAGENET_1K
    found = re.match(r"([^:]+): ([\d,]+) \+ ([\d,]+) images", data)
    assert found, f"the header of {name} has another form: {data}"
    return DataSet(found[1], *(int(number.replace(",", "")) for number in found.groups()[1:]))


def default_instance(name: str) -> str:
    """Return the machine that a recipe is estimated on by default."""
    return header_field(name, "instance") or DEFAULT_INSTANCE


def header_field(name: str, field: str) -> str | None:
    """Return a field of the header of a shipped recipe in one line, or None if it is absent."""
    if name not in recipe_names():
        return None
    header = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    found = re.search(rf"^# +{field} +(.*(?:\n# {{8,}}.*)*)", header, re.MULTILINE)
    return re.sub(r"\n# +", " ", found[1]) if found else None
