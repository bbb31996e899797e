"""Compare the shipped recipes: epochs, published accuracy, hours and dollars on one machine."""

from __future__ import annotations

import re

from imagenet_rn50.recipe import load_recipe, recipe_names
from imagenet_rn50.tools.estimate import Options, duration, make_estimate
from imagenet_rn50.tools.estimate_report import dollars, hours_text
from imagenet_rn50.tools.prices import PriceTable
from imagenet_rn50.tools.recipe_headers import DEFAULT_INSTANCE, default_instance, header_field
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.formatting import aligned

_HEAD = (
    "recipe",
    "epochs",
    "published top-1",
    "source",
    "reproduced here",
    "hours",
    "on demand",
    "spot",
)
_RULE = ("---", "---:", "---", "---", "---", "---:", "---:", "---:")
_NOT_REPRODUCED = "; not reproduced here"


def recipe_rows(prices: PriceTable, options: Options) -> list[tuple[str, ...]]:
    """Return the cells of each recipe, without a head, in the order of their epochs.

    Args:
        prices: The price table.
        options: The machine, as for an estimate.
    """
    return [_cells(name, prices, options) for name in sorted(recipe_names(), key=_epochs)]


def format_recipes(prices: PriceTable, options: Options, *, markdown: bool) -> str:
    """Return a table of all recipes, in the order of their epochs.

    Args:
        prices: The price table.
        options: The machine, as for an estimate.
        markdown: As Markdown instead of text.

    Raises:
        InputError: If the speed or the price of the machine is not known.
    """
    rows = recipe_rows(prices, options)
    # Any recipe tells machine and prices; this one can be shared by 1, 2 and 4 GPUs.
    example = make_estimate("a3-100ep", load_recipe("a3-100ep"), prices, options)
    note = (
        f"Hours and dollars: training and evaluating once an epoch on a {example.machine} "
        "or on the machine in brackets, computed by `estimate`, which lists what it assumes; "
        f"without packing, interruptions and storage. {example.speed_source}. "
        f"{'. '.join([example.price_source, *_other_prices(prices, options)])}."
    )
    if any(row[-3] == "-" and row[4] != "yes" for row in rows):
        note += f" -: {example.instance.gpus} GPUs cannot share the recipe's micro batches."
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in (_HEAD, _RULE, *rows)]
        return "\n".join([*lines, "", note])
    return f"{aligned([_HEAD, *rows])}\n\n{note}"


def _other_prices(prices: PriceTable, options: Options) -> list[str]:
    """Return the price of each machine that a recipe names as its own, with the source."""
    if options.instance is not None:
        return []
    others = {default_instance(name): name for name in recipe_names()}
    others.pop(DEFAULT_INSTANCE)
    found = [make_estimate(n, load_recipe(n), prices, options) for n in others.values()]
    return [estimate.price_source for estimate in found]


def _epochs(name: str) -> int:
    return load_recipe(name).epochs


def _cells(name: str, prices: PriceTable, options: Options) -> tuple[str, ...]:
    published = header_field(name, "published")
    accuracy = published or header_field(name, "expected") or "-"
    reproduced = "not yet" if accuracy.endswith(_NOT_REPRODUCED) else "yes"
    accuracy = re.sub(r" top-1", "", accuracy.removesuffix(_NOT_REPRODUCED))
    hours, on_demand, spot = "-", "-", "-"
    if published:
        hours, on_demand, spot = _cost(name, prices, options)
    return (
        name,
        str(_epochs(name)),
        accuracy,
        header_field(name, "source") or "-",
        reproduced,
        hours,
        on_demand,
        spot,
    )


def _cost(name: str, prices: PriceTable, options: Options) -> tuple[str, str, str]:
    """Return hours, dollars on demand and on spot; dashes if so many GPUs cannot share it."""
    recipe, kind = load_recipe(name), options.instance or default_instance(name)
    instance = prices.instance(kind)
    try:
        recipe.accumulation(instance.gpus)
    except InputError:
        return "-", "-", "-"
    found = make_estimate(name, recipe, prices, options)
    hours, instance = duration(recipe, found.rates).hours, found.instance
    spot = dollars(hours * instance.spot) if instance.spot else "-"
    where = "" if kind in {options.instance, DEFAULT_INSTANCE} else f" ({kind})"
    return f"{hours_text(hours)}{where}", dollars(hours * instance.on_demand), spot
