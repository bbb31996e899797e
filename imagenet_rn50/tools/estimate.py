"""Estimate how long a run takes and what it costs, before any money is spent.

The input is a recipe, a dated table of EC2 prices and published speeds (`prices.yaml`), and, if
there is one, the measurement of `doctor --json`. The rest is arithmetic:

- An epoch runs at the pace of the slowest of volume, loader and GPUs. The volume counts in the
  first epoch only if the shards fit into memory afterwards.
- The cost of a convolution is proportional to the number of pixels, so images/s of the GPUs scale
  with 1 / side^2.

Every rate is printed with its source. No torch is imported, and nothing is measured here.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from imagenet_rn50.peaks import peak_tflops, utilisation
from imagenet_rn50.recipe import RECIPES, ModelRecipe, Recipe, load_recipe, recipe_names
from imagenet_rn50.shards.imagenet1k import NUM_IMAGES
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest
from imagenet_rn50.tools.system_info import PAGE_CACHE_FRACTION
from imagenet_rn50.training.schedules import schedule_warnings
from imagenet_rn50.utils.errors import InputError, require_at_least, require_positive
from imagenet_rn50.utils.files import read_json, read_yaml
from imagenet_rn50.utils.formatting import counted, rate_text

PRICES = Path(__file__).parent / "prices.yaml"
DEFAULT_INSTANCE = "g6.12xlarge"
NUM_PARAMETERS = 25_557_032  # ResNet-50
FLOPS_PER_IMAGE = 24_299_077_632  # of training ResNet-50 at 224 px, as utilisation.py counts them
LOADER_IMAGES_PER_CORE = 603.0  # half of what benchmarks/results/loaders.txt has for two cores
RESIZED_FRACTION = (341 * 256) / (500 * 375)  # pixels of a usual ImageNet image, after and before

Precision: TypeAlias = Literal["bf16", "fp16", "no"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16", "no")

_TABLE_SIZE = 224  # px, of the speeds in the table
_GP3_MIB = 125.0  # MiB/s of a gp3 volume by default
# ILSVRC2012_img_train.tar has 147,897,477,120 bytes. The label of a sample takes 1,024 more.
_BYTES_PER_IMAGE = 147_897_477_120 / NUM_IMAGES[TRAIN] + 1_024
_FORWARD = 1 / 3  # of a training step: the backward pass costs twice the forward pass
_NUM_WORKERS = 8  # of a rank: the most that train_accelerate.py starts by default
_IMAGES_PER_SHARD = 1_251  # the default of shard_imagenet.py
_EXTRA_SHARDS = 3 + 2  # in use beyond the window, and read ahead: data/{sampler,prefetch}.py
_RESNET50 = ModelRecipe().model_dump(exclude={"zero_init_last_norm"})
_HOW_TO_MEASURE = (
    "run `doctor --json > doctor.json` there and pass --measured doctor.json, or "
    "pass --images-per-second"
)


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Instance(_Row):
    """An instance type; prices in USD an hour."""

    gpus: PositiveInt
    gpu: str
    vcpus: PositiveInt
    memory_gib: PositiveFloat
    network_gbps: PositiveFloat | None = None
    on_demand: NonNegativeFloat
    spot: PositiveFloat | None = None


class Speed(_Row):
    """A speed of training ResNet-50 at 224 px in mixed precision, as others report it."""

    gpu: str
    gpus: PositiveInt
    images_per_second: PositiveFloat
    source: str


class SinglePrecision(_Row):
    """The speed of float32, as a fraction of that of mixed precision."""

    part: PositiveFloat
    source: str


class PriceTable(_Row):
    """The content of `prices.yaml`."""

    source: str
    looked_up: date
    instances: dict[str, Instance]
    speeds: tuple[Speed, ...] = ()
    single_precision: SinglePrecision

    def instance(self, name: str) -> Instance:
        """Return an instance type.

        Raises:
            InputError: If the table does not have it.
        """
        if name not in self.instances:
            raise InputError(
                f"there is no price for {name!r}",
                expected=f"one of {', '.join(self.instances)}",
                fix="pass --prices with your own table, like imagenet_rn50/tools/prices.yaml",
            )
        return self.instances[name]

    def speed(self, instance: Instance) -> tuple[float, str]:
        """Return the images/s of all GPUs of an instance, and the source.

        The reported number of GPUs nearest to the instance's is scaled in proportion.

        Raises:
            InputError: If the table has no speed of its GPU.
        """
        known = [speed for speed in self.speeds if speed.gpu == instance.gpu]
        if not known:
            raise InputError(
                f"the speed of a {instance.gpu} is not known",
                expected="a measurement",
                fix=_HOW_TO_MEASURE,
            )
        nearest = min(known, key=lambda speed: abs(speed.gpus - instance.gpus))
        scaled = "" if nearest.gpus == instance.gpus else f"; scaled from {nearest.gpus} GPUs"
        rate = nearest.images_per_second * instance.gpus / nearest.gpus
        return rate, nearest.source + scaled


def load_prices(path: Path = PRICES) -> PriceTable:
    """Read a price table.

    Raises:
        InputError: If there is no such file, or it is not a price table.
    """
    content = read_yaml(path)
    try:
        # From JSON, pydantic makes dates and tuples while everything else stays strict.
        return PriceTable.model_validate_json(json.dumps(content))
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"{path} is not a price table", found=found) from None


@dataclass(frozen=True)
class Rates:
    """What one machine does, and what it reads."""

    gpus: float  # images/s of training steps of all its GPUs, at `size`
    size: int  # px
    loader: float  # images/s of all loader workers
    volume: float  # MiB/s of the volume that holds the shards
    bytes_per_image: float  # of the shards, tar headers included
    memory_bytes: float
    num_train: int
    num_validation: int

    def gpus_at(self, size: int) -> float:
        """Return the images/s of the GPUs at another image size."""
        return self.gpus * (self.size / size) ** 2

    @property
    def images_from_volume(self) -> float:
        """The images/s that the volume delivers."""
        return self.volume * 2**20 / self.bytes_per_image

    @property
    def fits_memory(self) -> bool:
        """Whether the page cache holds the shards after the first epoch."""
        return self.num_train * self.bytes_per_image <= PAGE_CACHE_FRACTION * self.memory_bytes


class Duration(NamedTuple):
    """The time a run takes without interruptions."""

    hours: float
    images_per_second: float  # mean over all training epochs
    limit: str  # what limits most of the training time: volume, loader or devices


def duration(recipe: Recipe, rates: Rates, num_nodes: int = 1) -> Duration:
    """Return how long a run takes.

    Every node reads every shard, for samples of a shard go to all ranks. So loaders and GPUs add up
    over nodes, and volumes do not.

    Args:
        recipe: The hyperparameters.
        rates: The rates of one node.
        num_nodes: The number of equal nodes.
    """
    seconds: defaultdict[str, float] = defaultdict(float)  # by the stage that limits
    for epoch in range(recipe.epochs):
        paces = {
            "devices": rates.gpus_at(recipe.data.size_at(epoch)) * num_nodes,
            "loader": rates.loader * num_nodes,
        }
        if epoch == 0 or not rates.fits_memory:
            paces["volume"] = rates.images_from_volume
        limit, pace = min(paces.items(), key=lambda item: item[1])
        seconds[limit] += rates.num_train / pace
    training = sum(seconds.values())
    evaluation = min(rates.gpus_at(recipe.data.eval_size) / _FORWARD, rates.loader) * num_nodes
    return Duration(
        hours=(training + recipe.epochs * rates.num_validation / evaluation) / 3600,
        images_per_second=recipe.epochs * rates.num_train / training,
        limit=max(seconds, key=lambda stage: seconds[stage]),
    )


def variants(
    recipe: Recipe, rates: Rates, resized_fraction: float
) -> Iterator[tuple[str, Recipe, Rates]]:
    """Yield the run as asked, then each change to shards, image size or volume, with its name.

    Args:
        recipe: The hyperparameters as asked.
        rates: The rates of the machine as asked.
        resized_fraction: Bytes of an image whose shorter side is resized to 256 px, as a fraction
            of the original.
    """
    resized = replace(rates, bytes_per_image=rates.bytes_per_image * resized_fraction)
    changes = [("shards resized, short=256", recipe, resized)]
    for size in (128, 160, 192, 224):
        fixed = {"train_size": size, "final_size": None, "growth": None}
        data = recipe.data.model_copy(update=fixed)
        changed = recipe.model_copy(update={"data": data})
        changes.append((f"crops of {size} px throughout", changed, rates))
    for volume, name in ((125, "gp3 default"), (1000, "gp3, paid for")):
        name = f"volume of {volume} MiB/s ({name})"
        changes.append((name, recipe, replace(rates, volume=volume)))
    yield "as asked", recipe, rates
    yield from (change for change in changes if change[1:] != (recipe, rates))


def multi_node_needs(
    recipe: Recipe, rates: Rates, num_nodes: int, num_workers: int, network_gbps: float
) -> dict[str, float]:
    """Return what each node needs to keep its GPUs busy; `_multi_node_lines` prints it.

    Args:
        recipe: The hyperparameters.
        rates: The rates of one node.
        num_nodes: The number of equal nodes.
        num_workers: Loader workers of each rank.
        network_gbps: The network of a node, Gbit/s.
    """
    images = num_nodes * min(rates.gpus_at(recipe.data.size_at(0)), rates.loader)
    shards = recipe.data.shuffle_window + num_workers + _EXTRA_SHARDS
    exchanged = 2 * (num_nodes - 1) / num_nodes * 4 * NUM_PARAMETERS  # bytes: a ring over the nodes
    return {
        "read_mib": images * rates.bytes_per_image / 2**20,  # every node reads every shard
        "used_mib": images * rates.bytes_per_image / num_nodes / 2**20,
        "cache_gb": shards * _IMAGES_PER_SHARD * rates.bytes_per_image / 1e9,
        "whole_gb": rates.num_train * rates.bytes_per_image / 1e9,
        "exchange_mb": exchanged / 1e6,
        "exchange_seconds": exchanged * 8 / (network_gbps * 1e9),
        "step_seconds": recipe.global_batch / images,  # without any exchange
    }


@dataclass(frozen=True)
class Options:
    """The options of `estimate`; see cli.py."""

    instance: str | None = None
    precision: Precision = "bf16"
    measured: Path | None = None
    images_per_second: float | None = None
    disk: float | None = None
    price: float | None = None
    nodes: int = 1
    shards: Path | None = None
    images: tuple[int, int] | None = None


@dataclass(frozen=True)
class Estimate:
    """A run, a machine, and every assumption about both, each with its source."""

    name: str  # of the recipe
    recipe: Recipe
    options: Options
    instance: Instance
    machine: str  # in words
    rates: Rates
    speeds: dict[Precision, float]  # images/s of all GPUs, in each precision whose speed is known
    assumptions: list[str]
    flops_per_image: float | None = None  # of training, at the size of the rates

    @property
    def is_imagenet(self) -> bool:
        """Whether the number of images is ImageNet-1k's; up to 1% may be missing."""
        return abs(self.rates.num_train / NUM_IMAGES[TRAIN] - 1) < 0.01


def make_estimate(name: str, recipe: Recipe, prices: PriceTable, options: Options) -> Estimate:
    """Collect the rates of a machine and every assumption about them.

    Args:
        name: Name of the recipe.
        recipe: The hyperparameters.
        prices: The price table.
        options: What the user gave.

    Raises:
        InputError: If so many GPUs cannot share the recipe; if a rate, a price or the number of
            images is unknown; or if another instance type was measured.
    """
    _check_numbers(options)
    measured = _read_measured(options.measured) if options.measured else {}
    instance, machine, price_source = _machine(prices, options, measured)
    recipe.accumulation(options.nodes * instance.gpus)
    counts, counts_source, num_bytes, bytes_source = _images(name, options, measured)
    speeds, size, speed_sources = _gpu_speeds(recipe, instance, prices, options, measured)
    loader, loader_source = _loader(instance, measured)
    volume, volume_source = _volume(options, measured)
    memory = measured["machine"]["memory_bytes"] if measured else instance.memory_gib * 2**30
    rates = Rates(speeds[options.precision], size, loader, volume, num_bytes, memory, *counts)
    flops = _flops_per_image(recipe, measured)
    estimate = Estimate(name, recipe, options, instance, machine, rates, speeds, [], flops)
    how_often = "once" if rates.fits_memory else "every epoch"
    resized = f"resized images take {RESIZED_FRACTION:.0%} of the bytes: 341 x 256 of 500 x 375 px"
    estimate.assumptions[:] = [
        f"{num_bytes / 1e3:.1f} kB of the shards per image: {bytes_source}",
        *speed_sources,
        f"{loader:,.0f} images/s of the loader: {loader_source}",
        f"{volume:,.0f} MiB/s of the volume, {rates.images_from_volume:,.0f} images/s: "
        f"{volume_source}",
        f"{counted(counts[0], 'training image')}, {counts[1]:,} in each epoch's evaluation: "
        f"{counts_source}",
        f"{memory / 2**30:,.0f} GiB of memory: shards of {counts[0] * num_bytes / 1e9:,.3g} GB are "
        f"read from the volume {how_often}",
        "images/s of the devices scale with 1 / side^2; evaluating an image costs a third of "
        "training on it",
        *([resized] if estimate.is_imagenet else []),
        "gradients are exchanged during the backward pass; no work is repeated",
        "MFU: the FLOPs of the model at these images/s, of the peak in NVIDIA's data sheet",
        "not included: startup, compilation, checkpoints, storage, transfer, packing",
        price_source,
    ]
    return estimate


def _check_numbers(options: Options) -> None:
    require_at_least("--nodes", options.nodes, 1)
    for number in options.images or ():
        require_at_least("--images", number, 1)
    for name in ("images_per_second", "disk", "price"):
        value = getattr(options, name)
        is_free = name == "price" and value == 0
        if value is not None and not is_free:
            require_positive(f"--{name.replace('_', '-')}", value)


def _read_measured(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict) or not {"machine", "devices", "packed"} <= found.keys():
        raise InputError(
            f"{path} is not a measurement",
            expected="the output of `python -m imagenet_rn50 doctor --json`",
        )
    return found


def _machine(
    prices: PriceTable, options: Options, measured: dict[str, Any]
) -> tuple[Instance, str, str]:
    """Return the machine, the machine in words, and its price with the source."""
    kind = options.instance
    if not measured:
        kind = kind or DEFAULT_INSTANCE
        instance = prices.instance(kind)
        machine = f"{kind} ({instance.gpus} {instance.gpu})"
    else:
        num_gpus, gpu = len(measured["devices"]), measured["devices"][0]["name"]
        machine = f"the machine of {options.measured} ({num_gpus} {gpu})"
        if kind is not None:
            instance = prices.instance(kind)
            if instance.gpus != num_gpus or instance.gpu not in gpu.split():
                raise InputError(
                    f"{options.measured} was not measured on a {kind}",
                    expected=f"{instance.gpus} {instance.gpu}",
                    found=f"{num_gpus} {gpu}",
                    fix="name the --instance it was measured on, or only its --price",
                )
        elif options.price is not None and options.nodes == 1:
            instance = Instance(
                gpus=num_gpus,
                gpu=gpu,
                vcpus=measured["machine"]["cores"],
                memory_gib=measured["machine"]["memory_bytes"] / 2**30,
                on_demand=options.price,
            )
        else:
            raise InputError(
                f"{options.measured} has neither the price of its machine nor its network's speed",
                expected="--price in USD an hour, or --instance; for several --nodes, --instance",
                fix=f"pass, for example, --instance {DEFAULT_INSTANCE}; a machine of your own may "
                "have --price 0",
            )
    if options.price is not None:
        instance = instance.model_copy(update={"on_demand": options.price, "spot": None})
        return instance, machine, f"${options.price:g} an hour: --price"
    spot = f"${instance.spot:g}" if instance.spot else "unknown"
    price_source = (
        f"{kind}: ${instance.on_demand:g} an hour on demand, {spot} spot; {prices.source}, looked "
        f"up {prices.looked_up}; check it, and pass --price or --prices"
    )
    return instance, machine, price_source


def _images(
    name: str, options: Options, measured: dict[str, Any]
) -> tuple[tuple[int, int], str, float, str]:
    """Return training and validation images, bytes per image, each followed by its source."""
    packed = measured.get("packed")
    if options.shards is not None:
        if options.images is not None:
            raise InputError("--images contradicts --shards", fix="pass only one of them")
        manifest = Manifest.load(options.shards)
        train, validation = manifest.split(TRAIN), manifest.split(VALIDATION)
        num_bytes = manifest.num_bytes_of(TRAIN) / train.num_samples
        counts = train.num_samples, validation.num_samples
        return counts, str(options.shards), num_bytes, "its manifest"
    if packed and options.images is None:
        counts = packed["num_samples"], packed["num_validation"]
        num_bytes = packed["num_bytes"] / packed["num_samples"]
        return counts, str(options.measured), num_bytes, "measured"
    bytes_source = "the size of ILSVRC2012_img_train.tar, and 1 kB for the label"
    if options.images is not None:
        return options.images, "--images", _BYTES_PER_IMAGE, bytes_source
    counts = NUM_IMAGES[TRAIN], NUM_IMAGES[VALIDATION]
    if header_field(name, "published"):
        return counts, "ImageNet-1k, as the recipe's source", _BYTES_PER_IMAGE, bytes_source
    raise InputError(
        f"the number of images that {name} trains on is not known",
        expected="--shards, --measured with the output of `doctor --shards`, or "
        "--images TRAIN VALIDATION",
        fix=f"for ImageNet-1k: --images {counts[0]} {counts[1]}",
    )


def _gpu_speeds(
    recipe: Recipe,
    instance: Instance,
    prices: PriceTable,
    options: Options,
    measured: dict[str, Any],
) -> tuple[dict[Precision, float], int, list[str]]:
    """Return images/s of all GPUs by precision, the image size of that, and the sources."""
    precision = options.precision
    if (given := options.images_per_second) is not None:
        source = f"{given:,.0f} images/s of the GPUs at {_TABLE_SIZE} px: --images-per-second"
        return {precision: given}, _TABLE_SIZE, [source]
    if measured:
        steps = [device["steps"] for device in measured["devices"]]
        speeds = {
            name: sum(rates[name] for rates in steps)
            for name in PRECISIONS
            if all(rates.get(name) for rates in steps)
        }
        if precision not in speeds:
            raise InputError(
                f"{options.measured} has no speed in precision {precision}",
                found=", ".join(steps[0]),
                fix="pass another --precision",
            )
        total, size = rate_text(speeds[precision]), measured["devices"][0]["size"]
        source = f"{total} images/s of {counted(len(steps), 'device')} at {size} px: measured"
        return speeds, size, [source]
    if any(getattr(recipe.model, name) != value for name, value in _RESNET50.items()):
        raise InputError(
            "the speed of this recipe's model is not known: the table has that of ResNet-50",
            expected="a measurement",
            fix=_HOW_TO_MEASURE,
        )
    rate, source = prices.speed(instance)
    single = prices.single_precision
    sources = [
        f"{rate:,.0f} images/s of {instance.gpus} {instance.gpu} at {_TABLE_SIZE} px in mixed "
        f"precision: reported by others, NOT MEASURED HERE ({source})"
    ]
    if precision == "no":
        sources.append(f"{single.part:.0%} of that in float32: {single.source}")
        return {"no": rate * single.part, "bf16": rate}, _TABLE_SIZE, sources
    return {precision: rate, "no": rate * single.part}, _TABLE_SIZE, sources


def _flops_per_image(recipe: Recipe, measured: dict[str, Any]) -> float | None:
    """Return the FLOPs of training on an image, of the size of the rates; None if unknown."""
    if measured:
        counted_by_doctor: float | None = measured["devices"][0].get("flops_per_image")
        return counted_by_doctor
    is_resnet50 = all(getattr(recipe.model, name) == value for name, value in _RESNET50.items())
    return FLOPS_PER_IMAGE if is_resnet50 else None


def _loader(instance: Instance, measured: dict[str, Any]) -> tuple[float, str]:
    """Return the images/s of the loader, and the source."""
    if decoding := measured.get("decoding"):
        return float(decoding["all_workers"]), "measured"
    return LOADER_IMAGES_PER_CORE * instance.vcpus / 2, (
        f"{LOADER_IMAGES_PER_CORE:.0f} per core, as in benchmarks/results/loaders.txt, and half as "
        f"many cores as the {instance.vcpus} vCPUs"
    )


def _volume(options: Options, measured: dict[str, Any]) -> tuple[float, str]:
    """Return the MiB/s of the volume, and the source."""
    if options.disk is not None:
        return options.disk, "--disk"
    if disk := measured.get("disk"):
        return float(disk["sequential"]), "measured"
    return _GP3_MIB, "the default of a gp3 volume; pass --disk for another one"


def format_estimate(estimate: Estimate, target: float | None) -> str:
    """Return the estimate as it is printed.

    Args:
        estimate: The estimate.
        target: A top-1 in (0, 1]: also list the recipes whose published top-1 reaches it.
    """
    options, recipe, rates = estimate.options, estimate.recipe, estimate.rates
    accuracy = published_line(estimate.name)
    if header_field(estimate.name, "published") and not estimate.is_imagenet:
        accuracy = f"unknown on these images; published on ImageNet-1k: {accuracy}"
    lines = [
        f"{estimate.name}: {counted(recipe.epochs, 'epoch')} on {options.nodes} x "
        f"{estimate.machine}, precision {options.precision}",
        f"accuracy: {accuracy}",
        *(f"warning: {warning}" for warning in schedule_warnings(recipe, rates.num_train)),
        "",
        _row("", "images/s", "MFU", "limit", "hours", "on demand", "spot"),
    ]
    # How much resizing saves is known of ImageNet only.
    resized_fraction = RESIZED_FRACTION if estimate.is_imagenet else 1.0
    rows = variants(recipe, rates, resized_fraction)
    lines += [_priced(estimate, *row, options.precision) for row in rows]
    for precision, speed in estimate.speeds.items():
        if precision != options.precision:
            changed = replace(rates, gpus=speed)
            lines.append(_priced(estimate, f"precision {precision}", recipe, changed, precision))
    if options.nodes > 1:
        lines += ["", *_multi_node_lines(estimate)]
    if target is not None:
        lines += ["", *_target_lines(estimate, target)]
    lines += ["", "assumptions:", *(f"  {text}" for text in estimate.assumptions)]
    return "\n".join(lines)


def implied_mfu(
    estimate: Estimate, recipe: Recipe, rates: Rates, precision: Precision
) -> float | None:
    """Return the MFU that a run's images/s imply, of the wall clock of training as in its log.

    None if the FLOPs of the model or the peak of the GPU are not known.
    """
    peak = peak_tflops(estimate.instance.gpu, precision)
    if peak is None or estimate.flops_per_image is None:
        return None
    num_gpus = estimate.instance.gpus * estimate.options.nodes
    sides = [recipe.data.size_at(epoch) for epoch in range(recipe.epochs)]
    pixels = sum((side / rates.size) ** 2 for side in sides) / len(sides)
    rate = duration(recipe, rates, estimate.options.nodes).images_per_second
    return utilisation(estimate.flops_per_image * pixels, rate / num_gpus, peak)["mfu"]


def _priced(
    estimate: Estimate, name: str, recipe: Recipe, rates: Rates, precision: Precision
) -> str:
    took = duration(recipe, rates, estimate.options.nodes)
    mfu = implied_mfu(estimate, recipe, rates, precision)
    machine_hours = took.hours * estimate.options.nodes
    instance = estimate.instance
    return _row(
        name,
        rate_text(took.images_per_second),
        "-" if mfu is None else f"{mfu:.1%}",
        took.limit,
        f"{took.hours:.1f}" if took.hours >= 1 else f"{took.hours:.2g}",
        _dollars(machine_hours * instance.on_demand),
        _dollars(machine_hours * instance.spot) if instance.spot else "-",
    )


def _row(name: str, rate: str, mfu: str, limit: str, hours: str, on_demand: str, spot: str) -> str:
    return f"{name:<38}{rate:>9}{mfu:>7}  {limit:<7}{hours:>7}{on_demand:>11}{spot:>11}"


def _dollars(amount: float) -> str:
    return "<$0.01" if 0 < amount < 0.01 else f"${amount:,.2f}"


def _multi_node_lines(estimate: Estimate) -> Iterator[str]:
    nodes, network, recipe = estimate.options.nodes, estimate.instance.network_gbps, estimate.recipe
    assert network is not None, "several nodes need an instance of the table"
    need = multi_node_needs(recipe, estimate.rates, nodes, _NUM_WORKERS, network)
    exchange, step = need["exchange_seconds"], need["step_seconds"]
    overlap = "can" if exchange < 2 / 3 * step else "cannot"
    micro_batches = recipe.global_batch // recipe.micro_batch
    ranks = [str(n) for n in range(1, micro_batches + 1) if micro_batches % n == 0]
    yield from (
        f"each of {nodes} nodes, computed and not run here:",
        f"  reads     {need['read_mib']:,.0f} MiB/s of shards = images/s of all nodes x bytes per "
        "image",
        f"  uses      {need['used_mib']:,.0f} MiB/s of them, its part of every batch",
        f"  cache     at least {need['cache_gb']:.1f} GB = (window + 3 + workers + 2) shards with "
        f"{_NUM_WORKERS} workers per rank; {need['whole_gb']:.0f} GB download each shard once",
        f"  gradients {need['exchange_mb']:.0f} MB per step = 2 (N - 1) / N x 4 bytes x "
        f"parameters, {exchange * 1e3:.0f} ms at {network:g} Gbit/s",
        f"            in a step of {step * 1e3:.0f} ms; {overlap} overlap with the backward pass "
        f"(2/3 of it); without overlap, {step / (step + exchange):.0%} of the speed",
        f"  ranks     {', '.join(ranks)} give the same batches",
    )


def _target_lines(estimate: Estimate, target: float) -> Iterator[str]:
    """Yield what each recipe whose published top-1 reaches a target takes on this machine."""
    if not estimate.is_imagenet:
        raise InputError(
            f"--target {target:g} needs ImageNet-1k: the recipes' accuracy is published for it",
            found=f"{counted(estimate.rates.num_train, 'training image')} of another data set",
            fix="omit --target",
        )
    published = {name: published_top1(name) or 0.0 for name in recipe_names()}
    reaching = {name: top1 for name, top1 in published.items() if top1 >= target}
    if not reaching:
        yield f"no recipe has a published top-1 of {_percent(target)} or more"
        return
    yield f"recipes with a published top-1 of {_percent(target)} or more:"
    num_ranks = estimate.options.nodes * estimate.instance.gpus
    for name, top1 in reaching.items():
        recipe = load_recipe(name)
        try:
            recipe.accumulation(num_ranks)
        except InputError:
            yield f"{name:<38}cannot be shared by {num_ranks} ranks"
            continue
        title = f"{name}, {counted(recipe.epochs, 'epoch')}, {_percent(top1)}"
        yield _priced(estimate, title, recipe, estimate.rates, estimate.options.precision)
        yield f"  published: {published_line(name)}"
        if differs := header_field(name, "differs"):
            text = f"differs here: {differs}"
            yield from wrap(text, 85, initial_indent="  ", subsequent_indent="    ")


def _percent(top1: float) -> str:
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
