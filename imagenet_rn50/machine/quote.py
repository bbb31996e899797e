"""From options to a quote: rates with their sources, hours and prices, printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from imagenet_rn50.errors import InputError
from imagenet_rn50.files import read_json
from imagenet_rn50.machine.estimate import Duration, Rates, duration, variants
from imagenet_rn50.machine.nodes import demand
from imagenet_rn50.machine.prices import Instance, PriceTable
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.recipe_files import RECIPES, load_recipe, recipe_names

Precision: TypeAlias = Literal["bf16", "fp16", "no"]

_PUBLISHED_SIZE = 224  # px, of the speeds in the table
_BASELINE = 125.0  # MiB/s of a gp3 volume
# ILSVRC2012_img_train.tar has 147,897,477,120 bytes for 1,281,167 images; a label's member in our
# shards takes 1,024 more.
_BYTES_PER_IMAGE = 147_897_477_120 / 1_281_167 + 1_024
_LOADER_PER_CORE = 607.0  # images/s
_RESIZED_PART = (341 * 256) / (500 * 375)


@dataclass(frozen=True)
class Options:
    """What the user says.

    Attributes:
        precision: Accelerate's name of it.
        measured: What `doctor --json` printed.
        images_per_second: Of all GPUs of a machine at 224 px, known better than the table knows it.
        disk: MiB/s of the volume of the shards.
        price: USD an hour of one machine.
        nodes: How many machines.
    """

    precision: Precision = "bf16"
    measured: Path | None = None
    images_per_second: float | None = None
    disk: float | None = None
    price: float | None = None
    nodes: int = 1


@dataclass(frozen=True)
class Quote:
    """A run, what the machine does, and what was assumed for it.

    Attributes:
        name: Of the recipe.
        recipe: What would run.
        instance_name: Of the machine.
        instance: What it is and costs.
        rates: What it does.
        assumptions: Each of them, with its source.
        options: What the user said.
        prices: The table.
    """

    name: str
    recipe: Recipe
    instance_name: str
    instance: Instance
    rates: Rates
    assumptions: tuple[str, ...]
    options: Options
    prices: PriceTable


def make_quote(
    name: str, recipe: Recipe, instance_name: str, prices: PriceTable, options: Options
) -> Quote:
    """Finds the rates and writes down every assumption.

    Raises:
        InputError: When the recipe has no work for so many GPUs, or a rate or price is not known.
    """
    instance = prices.instance(instance_name)
    recipe.accumulation(options.nodes * instance.gpus)  # says what does not fit
    found = read_json(options.measured) if options.measured else {}
    assumptions: list[str] = []
    gpus, size = _gpus(instance, prices, options, found, assumptions)
    loader, volume, num_bytes = _input(instance, options, found, assumptions)
    memory = found["machine"]["memory_bytes"] if found else instance.memory_gib * 2**30
    rates = Rates(gpus, size, loader, volume, num_bytes, memory)
    kept = "are read from the volume once" if rates.fits_memory else "are read every epoch"
    assumptions += [
        f"{rates.num_train:,} training images, {rates.num_validation:,} in each epoch's evaluation",
        f"{memory / 2**30:,.0f} GiB of memory: shards of "
        f"{rates.num_train * num_bytes / 1e9:,.0f} GB {kept}",
        "the GPUs' images/s go with 1 / side^2; an evaluation costs a third of training an image",
        "a backward pass hides the exchange of gradients; no interruption is repeated",
        "not counted: starting, compiling, checkpoints, storage, transfer, packing",
    ]
    return Quote(name, recipe, instance_name, instance, rates, tuple(assumptions), options, prices)


def _gpus(
    instance: Instance,
    prices: PriceTable,
    options: Options,
    found: dict[str, Any],
    assumptions: list[str],
) -> tuple[float, int]:
    """Returns images/s of all GPUs, and the size at which that is."""
    if options.images_per_second is not None:
        assumptions.append(f"{options.images_per_second:,.0f} images/s of the GPUs: you said so")
        return options.images_per_second, _PUBLISHED_SIZE
    if found:
        devices = found["devices"]
        rates = [device["steps"].get(options.precision) for device in devices]
        if not all(rates):
            raise InputError(
                f"{options.measured} has no speed in precision {options.precision}",
                found=", ".join(devices[0]["steps"]),
                fix="name another --precision",
            )
        size = devices[0]["size"]
        assumptions.append(
            f"{sum(rates):,.0f} images/s of {len(devices)} device(s) at {size} px: measured"
        )
        return sum(rates), size
    published = prices.speed(instance)
    rate = published.images_per_second
    assumptions.append(
        f"{rate:,.0f} images/s of {instance.gpus} {instance.gpu} at {_PUBLISHED_SIZE} px in mixed "
        f"precision: published, NOT MEASURED HERE ({published.source})"
    )
    if options.precision == "no":
        single = prices.single_precision
        assumptions.append(f"of that {single.part:.0%} in float32: published ({single.source})")
        rate *= single.part
    return rate, _PUBLISHED_SIZE


def _input(
    instance: Instance, options: Options, found: dict[str, Any], assumptions: list[str]
) -> tuple[float, float, float]:
    """Returns images/s of the loader, MiB/s of the volume, and bytes of an image."""
    packed, disk, decoding = (found.get(key) for key in ("packed", "disk", "decoding"))
    num_bytes = packed["num_bytes"] / packed["num_samples"] if packed else _BYTES_PER_IMAGE
    source = "measured" if packed else "ILSVRC2012_img_train.tar's size, and 1 kB for the label"
    assumptions.append(f"{num_bytes / 1e3:.1f} kB of a shard for each image: {source}")
    if decoding:
        loader = float(decoding["all_workers"])
        assumptions.append(f"{loader:,.0f} images/s of the loader: measured")
    else:
        loader = _LOADER_PER_CORE * instance.vcpus / 2
        assumptions.append(
            f"{loader:,.0f} images/s of the loader: {_LOADER_PER_CORE:.0f} a core, as in "
            f"benchmarks/results/loaders.txt, and {instance.vcpus} vCPUs for half as many cores"
        )
    if options.disk is not None:
        volume, source = options.disk, "you said so"
    elif disk:
        volume, source = float(disk["sequential"]), "measured"
    else:
        volume, source = _BASELINE, "a gp3 volume as it comes (--disk says otherwise)"
    images = volume * 2**20 / num_bytes
    assumptions.append(f"{volume:,.0f} MiB/s of the volume, {images:,.0f} images/s: {source}")
    return loader, volume, num_bytes


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
