"""A quote as it is printed: a table, several nodes, recipes for a target, every assumption."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from textwrap import wrap

from imagenet_rn50.errors import InputError
from imagenet_rn50.formatting import counted, rate_text
from imagenet_rn50.machine.estimate import Duration, duration, variants
from imagenet_rn50.machine.nodes import demand
from imagenet_rn50.machine.quote import (
    RESIZED_PART,
    Quote,
    head_field,
    make_quote,
    published_recipe,
)
from imagenet_rn50.recipe_files import load_recipe, recipe_names
from imagenet_rn50.training.schedules import schedule_warnings

_NUM_WORKERS = 8  # loader processes of a rank, as train_accelerate.py has them at most
_WIDTH = 85  # of the table


def text_of(quote: Quote, target: float | None) -> str:
    """Returns the whole quote, as it is printed."""
    options, recipe = quote.options, quote.recipe
    lines = [
        f"{quote.name}: {counted(recipe.epochs, 'epoch')} on {options.nodes} x {quote.machine}, "
        f"precision {options.precision}",
        f"accuracy: {_accuracy(quote)}",
        *(f"warning: {concern}" for concern in schedule_warnings(recipe, quote.data.num_train)),
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


def _accuracy(quote: Quote) -> str:
    """Returns what is published of the recipe, and of which images that is."""
    line = published_line(quote.name)
    if published_recipe(quote.name) and not quote.data.is_imagenet:
        return f"unknown on these images; published on ImageNet-1k: {line}"
    return line


def _table(quote: Quote) -> Iterator[str]:
    """Yields a line a variant."""
    yield _row("", "images/s", "limit", "hours", "on demand", "spot")
    # What resizing saves is known of ImageNet's pictures alone.
    resized_part = RESIZED_PART if quote.data.is_imagenet else 1.0
    for variant in variants(quote.recipe, quote.rates, resized_part):
        yield _priced(
            quote, variant.name, duration(variant.recipe, variant.rates, quote.options.nodes)
        )
    for precision in quote.other_precisions:
        options = replace(quote.options, precision=precision)
        changed = make_quote(quote.name, quote.recipe, quote.instance_name, quote.prices, options)
        took = duration(changed.recipe, changed.rates, quote.options.nodes)
        yield _priced(quote, f"precision {precision}", took)


def _priced(quote: Quote, name: str, took: Duration) -> str:
    """Returns a line of the table."""
    hours = took.hours * quote.options.nodes
    on_demand, spot = quote.instance.on_demand, quote.instance.spot
    if quote.options.price is not None:
        on_demand, spot = quote.options.price, None
    return _row(
        name,
        rate_text(took.images_per_second),
        took.limit,
        f"{took.hours:.1f}" if took.hours >= 1 else f"{took.hours:.2g}",
        _money(hours * on_demand),
        _money(hours * spot) if spot else "-",
    )


def _money(dollars: float) -> str:
    """Returns an amount; what costs something is not told as nothing."""
    return "<$0.01" if 0 < dollars < 0.01 else f"${dollars:,.2f}"


def _row(name: str, rate: str, limit: str, hours: str, on_demand: str, spot: str) -> str:
    """Returns the cells of a line."""
    return f"{name:<38}{rate:>9}  {limit:<7}{hours:>7}{on_demand:>11}{spot:>11}"


def _several_nodes(quote: Quote) -> Iterator[str]:
    """Yields what each node needs, with its formula."""
    nodes, network = quote.options.nodes, quote.instance.network_gbps
    assert network is not None, "a quote for several nodes has an instance of the table"
    needs = demand(quote.recipe, quote.rates, nodes, _NUM_WORKERS, network)
    hidden = "can be" if needs.can_be_hidden else "cannot be"
    yield f"each of {nodes} nodes, computed and not run here:"
    yield f"  reads     {needs.read_mib:,.0f} MiB/s of shards = images/s of all x bytes an image"
    yield f"  uses      {needs.used_mib:,.0f} MiB/s of them, its own part of every batch"
    yield (
        f"  cache     {needs.cache_gb:.1f} GB at least = (window + 3 + workers + 2) shards "
        f"with {_NUM_WORKERS} workers a rank; {needs.whole_gb:.0f} GB keep all, so that none is "
        "fetched twice"
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
    if not quote.data.is_imagenet:
        raise InputError(
            f"--target {target:g}: what recipes reach is published on ImageNet-1k",
            found=f"{counted(quote.data.num_train, 'training image')} of another data set",
            fix="leave out --target",
        )
    reaching = {
        name: published
        for name in recipe_names()
        if (published := published_top1(name)) is not None and published >= target
    }
    if not reaching:
        yield f"no recipe here has a published top-1 of {_target(target)} or more"
        return
    yield f"recipes with a published top-1 of {_target(target)} or more, as asked otherwise:"
    for name, published in reaching.items():
        recipe = load_recipe(name)
        try:
            recipe.accumulation(quote.num_ranks)
        except InputError:
            yield f"{name:<38}has no work for {quote.num_ranks} ranks"
            continue
        label = f"{name}, {counted(recipe.epochs, 'epoch')}, {_target(published)}"
        yield _priced(quote, label, duration(recipe, quote.rates, quote.options.nodes))
        yield from _caveats(name)


def _target(top1: float) -> str:
    """Returns a top-1 in percent with as many digits as it was given with, one at least."""
    digits = next((n for n in range(1, 6) if math.isclose(round(top1, n + 2), top1)), 6)
    return f"{top1:.{digits}%}"


def _caveats(name: str) -> Iterator[str]:
    """Yields under what conditions a figure was published, and what the recipe does otherwise."""
    yield f"  published: {published_line(name)}"
    if differs := head_field(name, "differs"):
        yield from wrap(
            f"differs here: {differs}", _WIDTH, initial_indent="  ", subsequent_indent="    "
        )


def _price_source(quote: Quote) -> Iterator[str]:
    """Yields where the prices come from."""
    if quote.options.price is not None:
        yield f"${quote.options.price:g} an hour: you said so"
        return
    instance, table = quote.instance, quote.prices
    spot = f"${instance.spot:g}" if instance.spot else "unknown"
    yield (
        f"{quote.instance_name}: ${instance.on_demand:g} an hour on demand, {spot} spot; "
        f"{table.source}, looked up {table.looked_up}; check it, and pass --price or --prices"
    )


def published_line(name: str) -> str:
    """Returns what a recipe's head says of its published accuracy."""
    found = head_field(name, "published") or head_field(name, "expected")
    return found or "unknown: the recipe names no published figure"


def published_top1(name: str) -> float | None:
    """Returns a recipe's published top-1 in [0, 1]; None where its head names none."""
    found = re.match(r"(\d+(?:\.\d+)?)%", published_line(name))
    return float(found[1]) / 100 if found else None
