"""What EC2 instances are and cost, and how fast others found them: a dated table, or the user's.

How long a run would take: arithmetic on a few rates, each with where it comes from.

An epoch's pace is that of the slowest of three: the volume (only in the first epoch, where the
shards fit into memory afterwards), the loader, the GPUs. What a convolution costs goes with the
number of pixels, so images/s of the GPUs go with 1 / side^2.

Where one machine ends: what several nodes need of volumes and network. Computed, never run here.

Notation: N nodes, n images/s of all together, b bytes an image, P parameters, B images a step.

From options to a quote: what a machine does, each rate with its source.

A quote as it is printed: a table, several nodes, recipes for a target, every assumption.
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
from typing import Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from imagenet_rn50.recipe import RECIPES, ModelRecipe, Recipe, load_recipe, recipe_names
from imagenet_rn50.shards.imagenet1k import NUM_IMAGES
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest
from imagenet_rn50.tools.system_info import KEPT_IN_MEMORY
from imagenet_rn50.training.schedules import schedule_warnings
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_json, read_yaml
from imagenet_rn50.utils.formatting import counted, rate_text

PRICES = Path(__file__).parent / "prices.yaml"


class _Row(BaseModel):
    """A part of the table: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Instance(_Row):
    """One kind of machine."""

    gpus: PositiveInt
    gpu: str
    vcpus: PositiveInt
    memory_gib: PositiveFloat
    network_gbps: PositiveFloat | None = None
    """Most that its network gives, Gbit/s."""
    on_demand: NonNegativeFloat
    """USD an hour."""
    spot: PositiveFloat | None = None
    """USD an hour."""


class Speed(_Row):
    """A speed that others found, of training ResNet-50 at 224 px in mixed precision."""

    gpu: str
    gpus: PositiveInt
    images_per_second: PositiveFloat
    source: str


class SinglePrecision(_Row):
    """How much slower float32 is."""

    part: PositiveFloat
    source: str


class PriceTable(_Row):
    """The whole table."""

    source: str
    looked_up: date
    instances: dict[str, Instance]
    speeds: tuple[Speed, ...] = ()
    single_precision: SinglePrecision

    def instance(self, name: str) -> Instance:
        """Returns a kind of machine.

        Raises:
            InputError: When the table has no such kind.
        """
        if name not in self.instances:
            raise InputError(
                f"there is no price for {name!r}",
                expected=f"one of {', '.join(self.instances)}",
                fix="pass --prices with a table of your own, like machine/prices.yaml",
            )
        return self.instances[name]

    def speed(self, instance: Instance) -> FoundSpeed:
        """Returns the speed that others found on what is nearest to an instance's GPUs.

        Raises:
            InputError: When nothing is known of its GPUs.
        """
        known = [speed for speed in self.speeds if speed.gpu == instance.gpu]
        if not known:
            raise InputError(
                f"no speed of a {instance.gpu} is known here",
                expected="a measurement",
                fix="run `doctor --json > doctor.json` there and pass --measured doctor.json, or "
                "pass --images-per-second",
            )
        nearest = min(known, key=lambda speed: abs(speed.gpus - instance.gpus))
        source = nearest.source
        if nearest.gpus != instance.gpus:
            source += f"; of {nearest.gpus} GPUs, taken in proportion"
        rate = nearest.images_per_second * instance.gpus / nearest.gpus
        return FoundSpeed(rate, source)


@dataclass(frozen=True)
class FoundSpeed:
    """A speed and who says so.

    Attributes:
        images_per_second: Of all GPUs of a machine.
        source: Where it comes from.
    """

    images_per_second: float
    source: str


def load_prices(path: Path = PRICES) -> PriceTable:
    """Reads a table of prices.

    Raises:
        InputError: When there is no such file, or it is no such table.
    """
    content = read_yaml(path)
    try:
        # Through JSON, because dates and tuples are made there while all else stays strict.
        return PriceTable.model_validate_json(json.dumps(content))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        )
        raise InputError(f"{path} is not a table of prices", found=problems) from None


IMAGENET_TRAIN, IMAGENET_VALIDATION = NUM_IMAGES[TRAIN], NUM_IMAGES[VALIDATION]
_SECONDS = 3600
_FORWARD = 1 / 3  # of a training step: a backward pass costs twice a forward pass


@dataclass(frozen=True)
class Rates:
    """What one machine does, and what it reads.

    Attributes:
        gpus: images/s of training steps of all its GPUs at `size`.
        size: Side of the pictures at which that is, px.
        loader: images/s of all loader processes.
        volume: MiB/s of the volume of the shards.
        bytes_per_image: Bytes of a shard for each of its samples.
        memory_bytes: Memory of the machine.
        num_train: Training images.
        num_validation: Images of each evaluation.
    """

    gpus: float
    size: int
    loader: float
    volume: float
    bytes_per_image: float
    memory_bytes: float
    num_train: int
    num_validation: int

    def gpus_at(self, size: int) -> float:
        """Returns images/s of the GPUs for pictures of another size."""
        return self.gpus * (self.size / size) ** 2

    @property
    def images_from_volume(self) -> float:
        """images/s that the volume delivers."""
        return self.volume * 2**20 / self.bytes_per_image

    @property
    def fits_memory(self) -> bool:
        """Whether the shards are read from the volume once only."""
        return self.num_train * self.bytes_per_image <= KEPT_IN_MEMORY * self.memory_bytes


@dataclass(frozen=True)
class Duration:
    """How long a run would take.

    Attributes:
        hours: All of it.
        images_per_second: In training, over all epochs.
        limit: What held most of the hours up: volume, loader or devices.
    """

    hours: float
    images_per_second: float
    limit: str


def duration(recipe: Recipe, rates: Rates, num_nodes: int = 1) -> Duration:
    """Computes how long a run would take, without interruptions.

    Every node reads whole shards, for each has its share of every batch; so loaders and GPUs add
    up over nodes, and volumes do not.

    Args:
        recipe: What would run.
        rates: Of one node.
        num_nodes: How many alike take part.
    """
    held_up: defaultdict[str, float] = defaultdict(float)  # seconds, by what held it up
    for epoch in range(recipe.epochs):
        limit, rate = _pace(recipe, rates, epoch, num_nodes)
        held_up[limit] += rates.num_train / rate
    training = sum(held_up.values())
    evaluation = min(rates.gpus_at(recipe.data.eval_size) / _FORWARD, rates.loader) * num_nodes
    seconds = training + recipe.epochs * rates.num_validation / evaluation
    return Duration(
        hours=seconds / _SECONDS,
        images_per_second=recipe.epochs * rates.num_train / training,
        limit=max(held_up, key=lambda limit: held_up[limit]),
    )


def _pace(recipe: Recipe, rates: Rates, epoch: int, num_nodes: int) -> tuple[str, float]:
    """Returns what holds an epoch up, and its images/s."""
    paces = {
        "devices": rates.gpus_at(recipe.data.size_at(epoch)) * num_nodes,
        "loader": rates.loader * num_nodes,
    }
    if epoch == 0 or not rates.fits_memory:
        paces["volume"] = rates.images_from_volume
    return min(paces.items(), key=lambda item: item[1])


@dataclass(frozen=True)
class Variant:
    """A run, or one like it with something changed.

    Attributes:
        name: What is changed.
        recipe: What would run.
        rates: What the machine does then.
    """

    name: str
    recipe: Recipe
    rates: Rates


def variants(recipe: Recipe, rates: Rates, resized_part: float) -> Iterator[Variant]:
    """Yields the run as asked, and what resized shards, sizes and volumes would change.

    Args:
        recipe: What would run.
        rates: What the machine does.
        resized_part: Bytes of a picture whose shorter side is 256 px, as a part of the whole one's.
    """
    asked = Variant("as asked", recipe, rates)
    yield asked
    for other in _others(recipe, rates, resized_part):
        if (other.recipe, other.rates) != (asked.recipe, asked.rates):
            yield other


def _others(recipe: Recipe, rates: Rates, resized_part: float) -> Iterator[Variant]:
    """Yields what may be changed; some of it may be so already."""
    resized = replace(rates, bytes_per_image=rates.bytes_per_image * resized_part)
    yield Variant("shards resized, short=256", recipe, resized)
    for size in (128, 160, 192, 224):
        data = recipe.data.model_copy(
            update={"train_size": size, "final_size": None, "growth": None}
        )
        changed = recipe.model_copy(update={"data": data})
        yield Variant(f"crops of {size} px throughout", changed, rates)
    for volume, name in ((125, "gp3 as it comes"), (1000, "gp3, paid for")):
        yield Variant(f"volume of {volume} MiB/s ({name})", recipe, replace(rates, volume=volume))


PARAMETERS = 25_557_032  # ResNet-50
_SHARD_IMAGES = 1_251  # shard_imagenet.py's default
_STRAYING, _AHEAD = (
    3,
    2,
)  # shards in use beyond the window; read ahead: loading/order.py, prefetch.py


@dataclass(frozen=True)
class Demand:
    """What a node must be given so that the GPUs of all nodes are busy.

    Attributes:
        read_mib: Reading or downloading shards, MiB/s a node: n b. Each batch is shared by all
            nodes and samples of a shard go to all of them, so every node reads every shard.
        used_mib: Of these, what its own samples are: n b / N.
        cache_gb: Least space for a cache of remote shards: (window + 3 + workers + 2) shards.
        whole_gb: Space that keeps every shard, so that each is fetched once a run and not once an
            epoch.
        exchange_mb: What a node sends a step: 2 (N - 1) / N x 4 P, a ring over nodes.
        exchange_seconds: That over its network, at its full rate.
        step_seconds: B / n, without any exchange.
        world_sizes: Numbers of ranks on which the recipe gives the same batches.
    """

    read_mib: float
    used_mib: float
    cache_gb: float
    whole_gb: float
    exchange_mb: float
    exchange_seconds: float
    step_seconds: float
    world_sizes: tuple[int, ...]

    @property
    def efficiency_without_overlap(self) -> float:
        """Part of the speed that is left if no exchange were hidden behind the backward pass."""
        return self.step_seconds / (self.step_seconds + self.exchange_seconds)

    @property
    def can_be_hidden(self) -> bool:
        """Whether the exchange is shorter than the backward pass, two thirds of a step."""
        return self.exchange_seconds < 2 / 3 * self.step_seconds


def demand(
    recipe: Recipe, rates: Rates, num_nodes: int, num_workers: int, network_gbps: float
) -> Demand:
    """Computes what each of several nodes needs.

    Args:
        recipe: What would run.
        rates: Of one node.
        num_nodes: How many alike take part.
        num_workers: Loader processes of a rank.
        network_gbps: Network of a node, Gbit/s.
    """
    images = num_nodes * min(rates.gpus_at(recipe.data.size_at(0)), rates.loader)
    shard_bytes = _SHARD_IMAGES * rates.bytes_per_image
    shards = recipe.data.shuffle_window + _STRAYING + num_workers + _AHEAD
    exchanged = 2 * (num_nodes - 1) / num_nodes * 4 * PARAMETERS
    micro_batches = recipe.global_batch // recipe.micro_batch
    return Demand(
        read_mib=images * rates.bytes_per_image / 2**20,
        used_mib=images * rates.bytes_per_image / num_nodes / 2**20,
        cache_gb=shards * shard_bytes / 1e9,
        whole_gb=rates.num_train * rates.bytes_per_image / 1e9,
        exchange_mb=exchanged / 1e6,
        exchange_seconds=exchanged * 8 / (network_gbps * 1e9),
        step_seconds=recipe.global_batch / images,
        world_sizes=tuple(n for n in range(1, micro_batches + 1) if micro_batches % n == 0),
    )


USUAL_INSTANCE = "g6.12xlarge"

Precision: TypeAlias = Literal["bf16", "fp16", "no"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16", "no")

_TABLE_SIZE = 224  # px, of the speeds in the table
_BASELINE = 125.0  # MiB/s of a gp3 volume
# ILSVRC2012_img_train.tar has 147,897,477,120 bytes for 1,281,167 images; a label's member in our
# shards takes 1,024 more.
_BYTES_PER_IMAGE = 147_897_477_120 / IMAGENET_TRAIN + 1_024
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
