"""Estimate how long a run takes and what it costs, before any money is spent.

The input is a recipe, a dated table of machines and speeds (`prices.py`), and, if there is one, the
measurement of `doctor --json`. The rest is arithmetic:

- An epoch runs at the pace of the slowest of volume, loader and GPUs. The volume counts in the
  first epoch only if the shards fit into memory afterwards.
- The cost of a convolution is proportional to the number of pixels, so images/s of the GPUs scale
  with 1 / side^2.

`estimate_report.py` prints it, `plan.py` adds the steps around training, and `recipe_table.py`
compares the recipes. No torch is imported, and nothing is measured here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from imagenet_rn50.peaks import peak_tflops
from imagenet_rn50.recipe import ModelRecipe, Recipe
from imagenet_rn50.shards.imagenet1k import NUM_IMAGES
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest
from imagenet_rn50.tools.prices import HOW_TO_MEASURE, Instance, PriceTable, Provider
from imagenet_rn50.tools.recipe_headers import (
    DEFAULT_INSTANCE,
    IMAGENET_1K,
    default_instance,
    published_data,
)
from imagenet_rn50.tools.system_info import PAGE_CACHE_FRACTION
from imagenet_rn50.utils.errors import InputError, require_at_least, require_positive
from imagenet_rn50.utils.files import read_json
from imagenet_rn50.utils.formatting import counted, rate_text

NUM_PARAMETERS = 25_557_032  # ResNet-50
FLOPS_PER_IMAGE = 24_299_077_632  # of training ResNet-50 at 224 px, as utilisation.py counts them
LOADER_IMAGES_PER_CORE = 424.0  # half of what benchmarks/results/loaders.txt has for two cores
RESIZED_FRACTION = (341 * 256) / (500 * 375)  # pixels of a usual ImageNet image, after and before
GP3_MIB = 125.0  # MiB/s of a gp3 volume by default
LOCAL_MIB = 1_000.0  # MiB/s of a machine's own storage: assumed, the most that a gp3 volume has
EVALUATION_COST = 1 / 3  # of training on an image: the backward pass costs twice the forward pass
NOT_INCLUDED = "not included: startup, compilation, checkpoints, storage, transfer, packing"

Precision: TypeAlias = Literal["bf16", "fp16", "no"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16", "no")

_TABLE_SIZE = 224  # px, of the speeds in the table
# ILSVRC2012_img_train.tar has 147,897,477,120 bytes. The label of a sample takes 1,024 more.
_BYTES_PER_IMAGE = 147_897_477_120 / NUM_IMAGES[TRAIN] + 1_024
_IMAGES_PER_SHARD = 1_251  # the default of shard_imagenet.py
_EXTRA_SHARDS = 3 + 2  # in use beyond the window, and read ahead: data/{sampler,prefetch}.py
_GP3_VOLUMES = ((GP3_MIB, "gp3 default"), (1_000.0, "gp3, paid for"))
_RESNET50 = ModelRecipe().model_dump(exclude={"zero_init_last_norm"})
_REPORTED = {
    "published": "reported by others, NOT MEASURED HERE",
    "computed": "computed, NOT MEASURED HERE",
    "measured": "measured by this project",
}


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
    evaluation = (
        min(rates.gpus_at(recipe.data.eval_size) / EVALUATION_COST, rates.loader) * num_nodes
    )
    return Duration(
        hours=(training + recipe.epochs * rates.num_validation / evaluation) / 3600,
        images_per_second=recipe.epochs * rates.num_train / training,
        limit=max(seconds, key=lambda stage: seconds[stage]),
    )


def variants(
    recipe: Recipe,
    rates: Rates,
    resized_fraction: float,
    volumes: Sequence[tuple[float, str]] = _GP3_VOLUMES,
) -> Iterator[tuple[str, Recipe, Rates]]:
    """Yield the run as asked, then each change to shards, image size or volume, with its name.

    Args:
        recipe: The hyperparameters as asked.
        rates: The rates of the machine as asked.
        resized_fraction: Bytes of an image whose shorter side is resized to 256 px, as a fraction
            of the original.
        volumes: Other volumes, each with MiB/s and a name.
    """
    resized = replace(rates, bytes_per_image=rates.bytes_per_image * resized_fraction)
    changes = [("shards resized, short=256", recipe, resized)]
    for size in (128, 160, 192, 224):
        fixed = {"train_size": size, "final_size": None, "growth": None}
        data = recipe.data.model_copy(update=fixed)
        changed = recipe.model_copy(update={"data": data})
        changes.append((f"crops of {size} px throughout", changed, rates))
    for volume, kind in volumes:
        name = f"volume of {volume:.0f} MiB/s ({kind})"
        changes.append((name, recipe, replace(rates, volume=volume)))
    yield "as asked", recipe, rates
    yield from (change for change in changes if change[1:] != (recipe, rates))


def multi_node_needs(
    recipe: Recipe, rates: Rates, num_nodes: int, num_workers: int, network_gbps: float
) -> dict[str, float]:
    """Return what each node needs to keep its GPUs busy; `estimate_report.py` prints it.

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
    precision: Precision | None = None  # None: the best that the GPU has
    measured: Path | None = None
    images_per_second: float | None = None
    disk: float | None = None
    price: float | None = None
    nodes: int = 1
    shards: Path | None = None
    images: tuple[int, int] | None = None


class Volume(NamedTuple):
    """What the shards are read from."""

    mib_s: float
    source: str
    is_local: bool = False  # storage of the machine's own, to which the shards are copied


@dataclass(frozen=True)
class Estimate:
    """A run, a machine, and every assumption about both, each with its source."""

    name: str  # of the recipe
    recipe: Recipe
    options: Options
    precision: Precision
    instance: Instance
    provider: Provider | None
    machine: str  # in words
    rates: Rates
    speeds: dict[Precision, float]  # images/s of all GPUs, in each precision whose speed is known
    volume: Volume
    speed_source: str
    price_source: str
    assumptions: list[str]
    flops_per_image: float | None = None  # of training, at the size of the rates

    @property
    def is_imagenet(self) -> bool:
        """Whether the number of images is ImageNet-1k's; up to 1% may be missing."""
        return IMAGENET_1K.has_as_many(self.rates.num_train)

    @property
    def volumes(self) -> Sequence[tuple[float, str]]:
        """Other volumes that the machine can have: those of EC2, if it may be there."""
        return _GP3_VOLUMES if self.provider is None or self.provider.volume else ()


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
    instance, machine, price_source = _machine(name, prices, options, measured)
    if options.nodes > 1 and instance.network_gbps is None:
        raise InputError(
            f"the network of several {machine} is not known",
            expected="an instance of EC2",
            fix="omit --nodes",
        )
    recipe.accumulation(options.nodes * instance.gpus)
    precision = _precision(instance, options)
    counts, counts_source, num_bytes, bytes_source = _images(name, options, measured)
    speeds, size, speed_sources = _gpu_speeds(
        recipe, instance, prices, precision, options, measured
    )
    loader, loader_source = _loader(instance, measured)
    provider = prices.provider(instance)
    shards_gb = sum(counts) * num_bytes / 1e9
    volume = _volume(options, measured, instance, provider, shards_gb)
    memory = measured["machine"]["memory_bytes"] if measured else instance.memory_gib * 2**30
    rates = Rates(speeds[precision], size, loader, volume.mib_s, num_bytes, memory, *counts)
    flops = _flops_per_image(recipe, measured)
    estimate = Estimate(
        name=name,
        recipe=recipe,
        options=options,
        precision=precision,
        instance=instance,
        provider=provider,
        machine=machine,
        rates=rates,
        speeds=speeds,
        volume=volume,
        speed_source="; ".join(speed_sources),
        price_source=price_source,
        assumptions=[],
        flops_per_image=flops,
    )
    how_often = "once" if rates.fits_memory else "every epoch"
    resized = f"resized images take {RESIZED_FRACTION:.0%} of the bytes: 341 x 256 of 500 x 375 px"
    estimate.assumptions[:] = [
        f"{num_bytes / 1e3:.1f} kB of the shards per image: {bytes_source}",
        *speed_sources,
        f"{loader:,.0f} images/s of the loader: {loader_source}",
        f"{volume.mib_s:,.0f} MiB/s of the volume, {rates.images_from_volume:,.0f} images/s: "
        f"{volume.source}",
        f"{counted(counts[0], 'training image')}, {counts[1]:,} in each epoch's evaluation: "
        f"{counts_source}",
        f"{memory / 2**30:,.0f} GiB of memory, {PAGE_CACHE_FRACTION:.0%} of it for the page cache: "
        f"shards of {counts[0] * num_bytes / 1e9:,.3g} GB are read from the volume {how_often}",
        "images/s of the devices scale with 1 / side^2; evaluating an image costs a third of "
        "training on it",
        *([resized] if estimate.is_imagenet else []),
        "gradients are exchanged during the backward pass; no work is repeated",
        "MFU: the FLOPs of the model at these images/s, of the peak in NVIDIA's data sheet",
        NOT_INCLUDED,
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


def _precision(instance: Instance, options: Options) -> Precision:
    """Return the precision as asked, or the best that the GPU has."""
    if options.precision == "bf16" and _lacks_bf16(instance):
        raise InputError(
            f"a {instance.gpu} has no bf16: PyTorch emulates it there, slowly",
            fix="pass --precision fp16",
        )
    return options.precision or ("fp16" if _lacks_bf16(instance) else "bf16")


def _lacks_bf16(instance: Instance) -> bool:
    has_fp16 = peak_tflops(instance.gpu, "fp16") is not None
    return has_fp16 and peak_tflops(instance.gpu, "bf16") is None


def _machine(
    name: str, prices: PriceTable, options: Options, measured: dict[str, Any]
) -> tuple[Instance, str, str]:
    """Return the machine, the machine in words, and its price with the source."""
    kind = options.instance
    if not measured:
        kind = kind or default_instance(name)
        instance = prices.instance(kind)
        machine = f"{kind} ({instance.gpus} {instance.gpu})"
    else:
        instance, machine = _measured_machine(prices, options, measured)
    if options.price is not None:
        instance = instance.model_copy(update={"on_demand": options.price, "spot": None})
        return instance, machine, f"${options.price:g} an hour: --price"
    provider = prices.provider(instance)
    assert provider is not None, "without a price, it is an instance of the table"
    spot = f", ${instance.spot:g} spot" if instance.spot else ""
    price_source = (
        f"{kind}: ${instance.on_demand:g} an hour on demand{spot}; {provider.source}, looked up "
        f"{provider.looked_up}; check it, and pass --price or --prices"
    )
    return instance, machine, price_source


def _measured_machine(
    prices: PriceTable, options: Options, measured: dict[str, Any]
) -> tuple[Instance, str]:
    """Return the machine that was measured, and the machine in words."""
    kind, num_gpus, gpu = options.instance, len(measured["devices"]), measured["devices"][0]["name"]
    machine = f"the machine of {options.measured} ({num_gpus} {gpu})"
    if kind is not None:
        instance = prices.instance(kind)
        if instance.gpus != num_gpus or not instance.has_gpu(gpu):
            raise InputError(
                f"{options.measured} was not measured on a {kind}",
                expected=f"{instance.gpus} {instance.gpu}",
                found=f"{num_gpus} {gpu}",
                fix="name the --instance it was measured on, or only its --price",
            )
        return instance, machine
    if options.price is None or options.nodes > 1:
        raise InputError(
            f"{options.measured} has neither the price of its machine nor its network's speed",
            expected="--price in USD an hour, or --instance; for several --nodes, --instance",
            fix=f"pass, for example, --instance {DEFAULT_INSTANCE}; a machine of your own may "
            "have --price 0",
        )
    instance = Instance(
        gpus=num_gpus,
        gpu=gpu,
        vcpus=measured["machine"]["cores"],
        memory_gib=measured["machine"]["memory_bytes"] / 2**30,
        on_demand=options.price,
    )
    return instance, machine


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
    if data := published_data(name):
        counts = data.num_train, data.num_validation
        return counts, f"{data.name}, as the recipe's source", _BYTES_PER_IMAGE, bytes_source
    raise InputError(
        f"the number of images that {name} trains on is not known",
        expected="--shards, --measured with the output of `doctor --shards`, or "
        "--images TRAIN VALIDATION",
        fix=f"for ImageNet-1k: --images {IMAGENET_1K.num_train} {IMAGENET_1K.num_validation}",
    )


def _gpu_speeds(
    recipe: Recipe,
    instance: Instance,
    prices: PriceTable,
    precision: Precision,
    options: Options,
    measured: dict[str, Any],
) -> tuple[dict[Precision, float], int, list[str]]:
    """Return images/s of all GPUs by precision, the image size of that, and the sources."""
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
            fix=HOW_TO_MEASURE,
        )
    speed = prices.speed(instance)
    rate = speed.images_per_second
    single = speed.single_precision or prices.single_precision
    sources = [
        f"{rate:,.0f} images/s of {instance.gpus} {instance.gpu} at {_TABLE_SIZE} px in mixed "
        f"precision: {_REPORTED[speed.basis]} ({speed.source})"
    ]
    if precision == "no":
        sources.append(f"{single.part:.0%} of that in float32: {single.source}")
        mixed: Precision = "fp16" if _lacks_bf16(instance) else "bf16"
        return {"no": rate * single.part, mixed: rate}, _TABLE_SIZE, sources
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


def _volume(
    options: Options,
    measured: dict[str, Any],
    instance: Instance,
    provider: Provider | None,
    shards_gb: float,
) -> Volume:
    """Return what the shards are read from."""
    if options.disk is not None:
        return Volume(options.disk, "--disk")
    if disk := measured.get("disk"):
        return Volume(float(disk["sequential"]), "measured")
    if instance.local_gb is not None and shards_gb <= instance.local_gb:
        return Volume(
            LOCAL_MIB,
            f"assumed of the {instance.local_gb:,.0f} GB of the machine's own storage, to which "
            "the shards are copied; `doctor --shards` measures it, and --disk replaces it",
            is_local=True,
        )
    if provider is None or provider.volume is not None:
        return Volume(GP3_MIB, "the default of a gp3 volume; pass --disk for another one")
    size = "of unknown size" if instance.local_gb is None else f"of {instance.local_gb:,.0f} GB"
    return Volume(
        LOCAL_MIB,
        f"assumed; the machine's storage {size} may not hold {shards_gb:,.0f} GB of shards: resize "
        "them, or read them from a bucket; pass --disk for what it reads",
    )
