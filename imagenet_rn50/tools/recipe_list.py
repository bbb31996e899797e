"""List the recipes that ship with the package, with what their headers say of them."""

from __future__ import annotations

from imagenet_rn50.recipe import load_recipe, recipe_names
from imagenet_rn50.tools.recipe_headers import (
    IMAGENET_1K,
    header_field,
    published_data,
    published_line,
    published_top1,
)
from imagenet_rn50.utils.formatting import aligned

_HEAD = ("recipe", "epochs", "train px", "eval px", "global batch", "published top-1", "source")


def recipe_table() -> str:
    """Return a table of all recipes, shortest first: one line each."""
    rows = sorted(map(_row, recipe_names()), key=lambda row: int(row[1]))
    note = (
        "Published figures are those of the sources; none was reproduced here.\n"
        "estimate --recipe NAME prints one in full, with hours and cost; schedule --recipe NAME "
        "plots its learning rate."
    )
    return f"{aligned([_HEAD, *rows])}\n\n{note}"


def _row(name: str) -> tuple[str, ...]:
    """Return the line of one recipe."""
    recipe = load_recipe(name)
    data, top1 = recipe.data, published_top1(name)
    grows = data.final_size is not None
    size = f"{data.train_size}-{data.final_size}" if grows else f"{data.train_size}"
    is_published = top1 is not None and header_field(name, "published") is not None
    number = published_line(name).split("%")[0]
    of = published_data(name)
    where = f" on {of.name}" if of is not None and of != IMAGENET_1K else ""
    return (
        name,
        f"{recipe.epochs}",
        size,
        f"{data.eval_size}",
        f"{recipe.global_batch}",
        f"{number}%{where}" if is_published else "-",
        header_field(name, "source")
        or ("" if is_published else "expected: ") + published_line(name),
    )
