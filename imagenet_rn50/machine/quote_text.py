"""A quote as it is printed: a table, several nodes, recipes for a target, every assumption."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from imagenet_rn50.errors import InputError
from imagenet_rn50.machine.estimate import Duration, duration, variants
from imagenet_rn50.machine.nodes import demand
from imagenet_rn50.machine.quote import Precision, Quote, make_quote
from imagenet_rn50.recipe_files import RECIPES, load_recipe, recipe_names

_RESIZED_PART = (341 * 256) / (500 * 375)  # pixels of a usual picture, before and after


def text_of(quote: Quote, target: float | None) -> str:
    """Returns the whole quote, as it is printed."""
    options, recipe = quote.options, quote.recipe
    machine = (
        f"{options.nodes} x {quote.instance_name}" if options.nodes > 1 else (quote.instance_name)
    )
    lines = [
        f"{quote.name}: {recipe.epochs} epochs on {machine} "
        f"({quote.instance.gpus} {quote.instance.gpu} each), precision {options.precision}",
        f"accuracy: {published_line(quote.name)}",
        "",
        *_table(quote),
    ]
    if options.nodes > 1:
        lines += ["", *_several_nodes(quote)]
    if target is not None:
        lines += ["", *_towards(quote, target)]
    lines += ["", "assumed:", *(f"  {assumption}" for assumption in quote.assumptions)]
    lines += [f"  {sentence}" for sentence in _price_source(quote)]
    return "\n".join(lines)


def _table(quote: Quote) -> Iterator[str]:
    """Yields a line a variant."""
    yield _row("", "images/s", "limit", "hours", "on demand", "spot")
    for variant in variants(quote.recipe, quote.rates, _RESIZED_PART):
        yield _priced(quote, variant.name, duration(variant.recipe, variant.rates, _n(quote)))
    if quote.options.measured is None and quote.options.images_per_second is None:
        other: Precision = "bf16" if quote.options.precision == "no" else "no"
        options = replace(quote.options, precision=other)
        changed = make_quote(quote.name, quote.recipe, quote.instance_name, quote.prices, options)
        name = f"precision {other}"
        yield _priced(quote, name, duration(changed.recipe, changed.rates, _n(quote)))


def _priced(quote: Quote, name: str, took: Duration) -> str:
    """Returns a line of the table."""
    hourly, spot = quote.options.price or quote.instance.on_demand, quote.instance.spot
    cheap = (
        f"${took.hours * spot * _n(quote):,.2f}" if spot and quote.options.price is None else "-"
    )
    return _row(
        name,
        f"{took.images_per_second:,.0f}",
        took.limit,
        f"{took.hours:.1f}",
        f"${took.hours * hourly * _n(quote):,.2f}",
        cheap,
    )


def _n(quote: Quote) -> int:
    """Returns the number of machines."""
    return quote.options.nodes


def _row(name: str, rate: str, limit: str, hours: str, on_demand: str, spot: str) -> str:
    """Returns the cells of a line."""
    return f"{name:<38}{rate:>9}  {limit:<7}{hours:>7}{on_demand:>11}{spot:>11}"


def _several_nodes(quote: Quote, num_workers: int = 8) -> Iterator[str]:
    """Yields what each node needs, with its formula."""
    nodes, network = _n(quote), quote.instance.network_gbps
    needs = demand(quote.recipe, quote.rates, nodes, num_workers, network)
    hidden = "can be" if needs.can_be_hidden else "cannot be"
    yield f"each of {nodes} nodes, computed and not run here:"
    yield f"  reads     {needs.read_mib:,.0f} MiB/s of shards = images/s of all x bytes an image"
    yield f"  uses      {needs.used_mib:,.0f} MiB/s of them, its own part of every batch"
    yield (
        f"  cache     {needs.cache_gb:.1f} GB at least = (window + 3 + workers + 2) shards; "
        f"{needs.whole_gb:.0f} GB keep all, so that none is fetched twice"
    )
    yield (
        f"  gradients {needs.exchange_mb:.0f} MB a step = 2 (N - 1) / N x 4 bytes x parameters, "
        f"{needs.exchange_seconds * 1e3:.0f} ms at {network:g} Gbit/s"
    )
    yield (
        f"            in a step of {needs.step_seconds * 1e3:.0f} ms; {hidden} hidden behind the "
        f"backward pass (2/3 of it); unhidden, {needs.efficiency_without_overlap:.0%} of the speed"
    )
    yield f"  ranks     {', '.join(map(str, needs.world_sizes))} give the same batches"


def _towards(quote: Quote, target: float) -> Iterator[str]:
    """Yields what each recipe whose published figure reaches a target would take here."""
    yield f"recipes with a published top-1 of {target:.1%} or more, as asked otherwise:"
    for name in recipe_names():
        published = published_top1(name)
        if published is None or published < target:
            continue
        recipe = load_recipe(name)
        try:
            recipe.accumulation(_n(quote) * quote.instance.gpus)
        except InputError:
            yield f"{name:<38}has no work for {_n(quote) * quote.instance.gpus} GPUs"
            continue
        label = f"{name}, {recipe.epochs} epochs, {published:.1%}"
        yield _priced(quote, label, duration(recipe, quote.rates, _n(quote)))


def _price_source(quote: Quote) -> Iterator[str]:
    """Yields where the prices come from."""
    if quote.options.price is not None:
        yield f"${quote.options.price:g} an hour: you said so"
        return
    instance, table = quote.instance, quote.prices
    spot = f"${instance.spot:g}" if instance.spot else "unknown"
    yield (
        f"${instance.on_demand:g} an hour on demand, {spot} spot: {table.source}, looked up "
        f"{table.looked_up}; check it, and pass --price or --prices"
    )


def published_line(name: str) -> str:
    """Returns what a recipe's head says of its published accuracy."""
    path = RECIPES / f"{name}.yaml"
    head = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(r"^#\s+(?:published|expected)\s+(.*)$", head, re.MULTILINE)
    return found[1] if found else "unknown: the recipe names no published figure"


def published_top1(name: str) -> float | None:
    """Returns a recipe's published top-1 in [0, 1]; None where its head names none."""
    found = re.match(r"(\d+(?:\.\d+)?)%", published_line(name))
    return float(found[1]) / 100 if found else None
