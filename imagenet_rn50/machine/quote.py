"""From options to a quote: what a machine does, each rate with its source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from imagenet_rn50.errors import InputError
from imagenet_rn50.files import read_json
from imagenet_rn50.machine.estimate import IMAGENET_TRAIN, IMAGENET_VALIDATION, Rates, rate_text
from imagenet_rn50.machine.prices import Instance, PriceTable
from imagenet_rn50.recipe import Recipe

USUAL_INSTANCE = "g6.12xlarge"

Precision: TypeAlias = Literal["bf16", "fp16", "no"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16", "no")

_TABLE_SIZE = 224  # px, of the speeds in the table
_BASELINE = 125.0  # MiB/s of a gp3 volume
# ILSVRC2012_img_train.tar has 147,897,477,120 bytes for 1,281,167 images; a label's member in our
# shards takes 1,024 more.
_BYTES_PER_IMAGE = 147_897_477_120 / 1_281_167 + 1_024
LOADER_PER_CORE = 603.0
"""images/s of one core, half of what benchmarks/results/loaders.txt has for two."""
RESIZED_PART = (341 * 256) / (500 * 375)  # pixels of a usual picture, after and before


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
        instance_name: Of the machine; None where it is known by its measurement alone.
        instance: What it is and costs.
        rates: What it does.
        machine: The machine, in words.
        num_ranks: GPUs of all machines.
        assumptions: Each of them, with its source.
        other_precisions: Those whose speed is known, too.
        options: What the user said.
        prices: The table.
    """

    name: str
    recipe: Recipe
    instance_name: str | None
    instance: Instance
    rates: Rates
    machine: str
    num_ranks: int
    assumptions: tuple[str, ...]
    other_precisions: tuple[Precision, ...]
    options: Options
    prices: PriceTable


def make_quote(
    name: str, recipe: Recipe, instance_name: str | None, prices: PriceTable, options: Options
) -> Quote:
    """Finds the rates and writes down every assumption.

    Args:
        name: Of the recipe.
        recipe: What would run.
        instance_name: Kind of machine; None: `USUAL_INSTANCE`, or the one that was measured.
        prices: The table.
        options: What the user says.

    Raises:
        InputError: When the recipe has no work for so many GPUs, a rate or price is not known, or
            another kind of machine was measured.
    """
    _require_positive(options)
    found = _read_measured(options.measured) if options.measured else {}
    if found:
        instance = _measured_instance(instance_name, prices, options, found)
        machine = f"the machine of {options.measured} ({instance.gpus} {instance.gpu})"
    else:
        instance_name = instance_name or USUAL_INSTANCE
        instance = prices.instance(instance_name)
        machine = f"{instance_name} ({instance.gpus} {instance.gpu})"
    num_ranks = options.nodes * instance.gpus
    recipe.accumulation(num_ranks)  # says what does not fit
    assumptions: list[str] = []
    gpus, size = _gpus(instance, prices, options, found, assumptions)
    loader, volume, num_bytes = _input(instance, options, found, assumptions)
    memory = found["machine"]["memory_bytes"] if found else instance.memory_gib * 2**30
    packed = found.get("packed") or {}
    rates = Rates(
        gpus,
        size,
        loader,
        volume,
        num_bytes,
        memory,
        num_train=packed.get("num_samples", IMAGENET_TRAIN),
        num_validation=packed.get("num_validation", IMAGENET_VALIDATION),
    )
    assumptions += _of_any_machine(rates)
    return Quote(
        name,
        recipe,
        instance_name,
        instance,
        rates,
        machine,
        num_ranks,
        tuple(assumptions),
        _other_precisions(options, found),
        options,
        prices,
    )


def _of_any_machine(rates: Rates) -> list[str]:
    """Returns what is assumed wherever the rates come from."""
    kept = "are read from the volume once" if rates.fits_memory else "are read every epoch"
    return [
        f"{rates.num_train:,} training images, {rates.num_validation:,} in each epoch's evaluation",
        f"{rates.memory_bytes / 2**30:,.0f} GiB of memory: shards of "
        f"{rates.num_train * rates.bytes_per_image / 1e9:,.0f} GB {kept}",
        "the devices' images/s go with 1 / side^2; evaluating an image costs a third of training",
        f"resized pictures take {RESIZED_PART:.0%} of the bytes: 341 x 256 of 500 x 375 px",
        "a backward pass hides the exchange of gradients; no interruption is repeated",
        "not counted: starting, compiling, checkpoints, storage, transfer, packing",
    ]


def _measured_instance(
    name: str | None, prices: PriceTable, options: Options, found: dict[str, Any]
) -> Instance:
    """Returns what was measured, as an instance with a price.

    Raises:
        InputError: When the price or the network is not known, or the instance is another one.
    """
    num_gpus, gpu = len(found["devices"]), found["devices"][0]["name"]
    if name is not None:
        instance = prices.instance(name)
        if instance.gpus != num_gpus or instance.gpu not in gpu.split():
            raise InputError(
                f"{options.measured} was not measured on a {name}",
                expected=f"{instance.gpus} {instance.gpu}",
                found=f"{num_gpus} {gpu}",
                fix="name the --instance it was measured on, or its --price alone",
            )
        return instance.model_copy(update={"gpu": gpu})
    if options.price is None or options.nodes > 1:
        raise InputError(
            f"{options.measured} does not say what its machine costs, nor what its network gives",
            expected="--price in USD an hour, or --instance; for several --nodes, --instance",
            fix=f"pass --instance {USUAL_INSTANCE}, say; a machine of your own may have --price 0",
        )
    return Instance(
        gpus=num_gpus,
        gpu=gpu,
        vcpus=found["machine"]["cores"],
        memory_gib=found["machine"]["memory_bytes"] / 2**30,
        network_gbps=None,
        on_demand=options.price,
    )


def _require_positive(options: Options) -> None:
    """Refuses numbers that make no sense.

    Raises:
        InputError: Naming the option.
    """
    for name in ("images_per_second", "disk", "price", "nodes"):
        value = getattr(options, name)
        is_free = name == "price" and value == 0
        if value is not None and not is_free and not (value > 0 and math.isfinite(value)):
            option = name.replace("_", "-")
            raise InputError(
                f"--{option} {value} makes no sense", expected="a finite number over 0"
            )


def _read_measured(path: Path) -> dict[str, Any]:
    """Reads what `doctor --json` printed.

    Raises:
        InputError: When it is something else.
    """
    found = read_json(path)
    if not isinstance(found, dict) or not {"machine", "devices", "packed"} <= found.keys():
        raise InputError(
            f"{path} is no examination",
            expected="what `python -m imagenet_rn50 doctor --json` printed",
        )
    return found


def _other_precisions(options: Options, found: dict[str, Any]) -> tuple[Precision, ...]:
    """Returns the precisions whose speed is known besides the one that was asked for."""
    if options.images_per_second is not None:
        return ()
    if found:
        steps = [device["steps"] for device in found["devices"]]
        known = [name for name in PRECISIONS if all(rates.get(name) for rates in steps)]
        return tuple(name for name in known if name != options.precision)
    return ("bf16",) if options.precision == "no" else ("no",)


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
        return options.images_per_second, _TABLE_SIZE
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
            f"{rate_text(sum(rates))} images/s of {len(devices)} device(s) at {size} px: measured"
        )
        return sum(rates), size
    found_by_others = prices.speed(instance)
    rate = found_by_others.images_per_second
    assumptions.append(
        f"{rate:,.0f} images/s of {instance.gpus} {instance.gpu} at {_TABLE_SIZE} px in mixed "
        f"precision: of others, NOT MEASURED HERE ({found_by_others.source})"
    )
    if options.precision == "no":
        single = prices.single_precision
        assumptions.append(f"of that {single.part:.0%} in float32: of others ({single.source})")
        rate *= single.part
    return rate, _TABLE_SIZE


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
        loader = LOADER_PER_CORE * instance.vcpus / 2
        assumptions.append(
            f"{loader:,.0f} images/s of the loader: {LOADER_PER_CORE:.0f} a core, as in "
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
