"""From options to a quote: what a machine does, each rate with its source."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from imagenet_rn50.errors import InputError
from imagenet_rn50.files import read_json
from imagenet_rn50.formatting import counted, rate_text
from imagenet_rn50.machine.estimate import IMAGENET_TRAIN, IMAGENET_VALIDATION, Rates
from imagenet_rn50.machine.prices import Instance, PriceTable
from imagenet_rn50.recipe import ModelRecipe, Recipe
from imagenet_rn50.recipe_files import RECIPES, recipe_names
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest

USUAL_INSTANCE = "g6.12xlarge"

Precision: TypeAlias = Literal["bf16", "fp16", "no"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16", "no")

_TABLE_SIZE = 224  # px, of the speeds in the table
_BASELINE = 125.0  # MiB/s of a gp3 volume
# ILSVRC2012_img_train.tar has 147,897,477,120 bytes for 1,281,167 images; a label's member in our
# shards takes 1,024 more.
_BYTES_PER_IMAGE = 147_897_477_120 / 1_281_167 + 1_024
_SOURCE_OF_BYTES = "ILSVRC2012_img_train.tar's size, and 1 kB for the label"
_LEFT_OUT = 0.01  # part of ImageNet's images, at most
LOADER_PER_CORE = 603.0
"""images/s of one core, half of what benchmarks/results/loaders.txt has for two."""
_RESNET50 = ModelRecipe().model_dump(exclude={"zero_init_last_norm"})
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
        shards: Folder of the shards that would be trained on.
        images: Training and validation images, where there are no shards yet.
    """

    precision: Precision = "bf16"
    measured: Path | None = None
    images_per_second: float | None = None
    disk: float | None = None
    price: float | None = None
    nodes: int = 1
    shards: Path | None = None
    images: tuple[int, int] | None = None


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
        data: The images.
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
    data: Data


@dataclass(frozen=True)
class Data:
    """The images that would be trained on.

    Attributes:
        num_train: Training images.
        num_validation: Images of each evaluation.
        source: Who says so.
        bytes_per_image: Bytes of a shard for each of its samples.
        bytes_source: Who says so.
    """

    num_train: int
    num_validation: int
    source: str
    bytes_per_image: float
    bytes_source: str

    @property
    def is_imagenet(self) -> bool:
        """Whether they are ImageNet-1k's, for all that their number says; some may be left out."""
        return abs(self.num_train / IMAGENET_TRAIN - 1) < _LEFT_OUT


def make_quote(
    name: str, recipe: Recipe, instance_name: str | None, prices: PriceTable, options: Options
) -> Quote:
    """Finds the rates and writes down every assumption; asks where one would be a guess.

    Args:
        name: Of the recipe.
        recipe: What would run.
        instance_name: Kind of machine; None: `USUAL_INSTANCE`, or the one that was measured.
        prices: The table.
        options: What the user says.

    Raises:
        InputError: When the recipe has no work for so many GPUs, a rate, a price or the number of
            images is not known, or another kind of machine was measured.
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
    data = _data(name, options, found)
    size_text = f"{data.bytes_per_image / 1e3:.1f} kB of a shard for each image"
    assumptions = [f"{size_text}: {data.bytes_source}"]
    gpus, size = _gpus(recipe, instance, prices, options, found, assumptions)
    loader, volume = _input(instance, options, found, data.bytes_per_image, assumptions)
    memory = found["machine"]["memory_bytes"] if found else instance.memory_gib * 2**30
    rates = Rates(
        gpus,
        size,
        loader,
        volume,
        data.bytes_per_image,
        memory,
        num_train=data.num_train,
        num_validation=data.num_validation,
    )
    assumptions += _of_any_machine(rates, data)
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
        data,
    )


def published_recipe(name: str) -> bool:
    """Says whether a recipe is one of ours for ImageNet: its head names a published figure."""
    return name in recipe_names() and head_field(name, "published") is not None


def head_field(name: str, field: str) -> str | None:
    """Returns what a recipe's head says under a word, in one line; None where it says nothing."""
    path = RECIPES / f"{name}.yaml"
    head = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(rf"^# +{field} +(.*(?:\n# {{8,}}.*)*)", head, re.MULTILINE)
    return re.sub(r"\n# +", " ", found[1]) if found else None


def _data(name: str, options: Options, found: dict[str, Any]) -> Data:
    """Returns the images that would be trained on.

    Raises:
        InputError: When nothing says how many there are, or two things do.
    """
    packed = found.get("packed")
    if options.shards is not None and options.images is not None:
        raise InputError("--shards says how many images there are", fix="leave out --images")
    if options.shards is not None:
        manifest = Manifest.load(options.shards)
        train, validation = manifest.split(TRAIN), manifest.split(VALIDATION).num_samples
        num_bytes = sum(shard.num_bytes for shard in train.shards) / train.num_samples
        return Data(train.num_samples, validation, str(options.shards), num_bytes, "its manifest")
    if packed:
        num_bytes = packed["num_bytes"] / packed["num_samples"]
        counts = packed["num_samples"], packed["num_validation"]
        if options.images is None:
            return Data(*counts, str(options.measured), num_bytes, "measured")
    if options.images is not None:
        return Data(*options.images, "you said so", _BYTES_PER_IMAGE, _SOURCE_OF_BYTES)
    if published_recipe(name):
        counts = IMAGENET_TRAIN, IMAGENET_VALIDATION
        return Data(*counts, "ImageNet-1k's, as in the recipe", _BYTES_PER_IMAGE, _SOURCE_OF_BYTES)
    raise InputError(
        f"it is not known how many images {name} would train on",
        expected="--shards, a --measured of `doctor --shards`, or --images TRAIN VALIDATION",
        fix=f"for ImageNet-1k: --images {IMAGENET_TRAIN} {IMAGENET_VALIDATION}",
    )


def _of_any_machine(rates: Rates, data: Data) -> list[str]:
    """Returns what is assumed wherever the rates come from."""
    kept = "are read from the volume once" if rates.fits_memory else "are read every epoch"
    resized = f"resized pictures take {RESIZED_PART:.0%} of the bytes: 341 x 256 of 500 x 375 px"
    return [
        f"{counted(rates.num_train, 'training image')}, {rates.num_validation:,} in each epoch's "
        f"evaluation: {data.source}",
        f"{rates.memory_bytes / 2**30:,.0f} GiB of memory: shards of "
        f"{rates.num_train * rates.bytes_per_image / 1e9:,.3g} GB {kept}",
        "the devices' images/s go with 1 / side^2; evaluating an image costs a third of training",
        *([resized] if data.is_imagenet else []),
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
    if options.images is not None and min(options.images) < 1:
        raise InputError(
            f"--images {options.images[0]} {options.images[1]}", expected="numbers of 1 or more"
        )
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
    recipe: Recipe,
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
            f"{rate_text(sum(rates))} images/s of {counted(len(devices), 'device')} at {size} px: "
            "measured"
        )
        return sum(rates), size
    if any(getattr(recipe.model, name) != value for name, value in _RESNET50.items()):
        raise InputError(
            "the speed of this recipe's model is not known: the table has that of ResNet-50",
            expected="a measurement",
            fix="run `doctor --json > doctor.json` there and pass --measured doctor.json, or "
            "pass --images-per-second",
        )
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
    instance: Instance,
    options: Options,
    found: dict[str, Any],
    num_bytes: float,
    assumptions: list[str],
) -> tuple[float, float]:
    """Returns images/s of the loader, and MiB/s of the volume for images of that many bytes."""
    disk, decoding = found.get("disk"), found.get("decoding")
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
    return loader, volume
