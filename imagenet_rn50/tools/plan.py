"""Plan a run from an empty machine to an exported model: steps, commands, hours, GB and dollars.

The steps are those of docs/ec2.md. Training is the estimate of `estimate.py`; the other steps are
computed from the sizes and rates below, of which each has a source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from imagenet_rn50.shards.imagenet1k import NUM_IMAGES
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION
from imagenet_rn50.tools.estimate import (
    EVALUATION_COST,
    GP3_MIB,
    LOCAL_MIB,
    NOT_INCLUDED,
    NUM_PARAMETERS,
    Estimate,
    duration,
)
from imagenet_rn50.tools.estimate_report import dollars, session_lines
from imagenet_rn50.tools.prices import Basis
from imagenet_rn50.utils.errors import InputError, require_positive

# `kaggle competitions download` of imagenet-object-localization-challenge prints 155G, its unit
# being 2^30 bytes, and 46:00 minutes: usnistgov/dioptra, obtaining-datasets.rst, read in November
# 2026.
ARCHIVE_GB = 155 * 2**30 / 1e9
ARCHIVE_MINUTES = 46.0
DOWNLOAD_MB_S = ARCHIVE_GB * 1e3 / (ARCHIVE_MINUTES * 60)
# ILSVRC2012_img_train.tar, and 6.74 GB of ILSVRC2012_img_val.tar, as the Hub lists it in
# presencesw/ILSVRC2012, read in November 2026.
IMAGES_GB = 147_897_477_120 / 1e9 + 6.74
# "ours, restart markers, 1 workers" in benchmarks/results/packing.txt: images/s per core x KB.
PACK_MB_S_PER_CORE = 285 * 104.8 / 1000
NUM_TRANSFORMS = 2  # that `evaluate` applies to each image: training's and the model's own
# `export --from resnet50.pth --arch resnet50 --classes FILE`, random weights, two CPU cores with
# nothing beside it, November 2026.
EXPORT_SECONDS = 23.0
WEIGHTS_GB = 4 * NUM_PARAMETERS / 1e9
HOURS_A_MONTH = 730

UNKNOWN_CONFIG = "CONFIG"

_VCPUS_PER_CORE = 2
_CONFIGS = {  # accelerate_configs, by GPUs and precision
    (1, "bf16"): "1gpu_bf16",
    (4, "bf16"): "g6_12xlarge",
    (8, "bf16"): "8gpu",
    (1, "fp16"): "1gpu_fp16",
    (2, "fp16"): "2xt4_fp16",
}
_MARKS: dict[Basis, str] = {"measured": "m", "computed": "c", "published": "p"}


@dataclass(frozen=True)
class PlanOptions:
    """Options of --plan."""

    download: float | None = None
    """MB/s of the download from Kaggle; by default what others report."""
    volume: float | None = None
    """MiB/s of the volume on which archive, images and shards are prepared; by default a gp3's."""
    volume_gb: float = 600.0
    """GB of that volume."""


class Figure(NamedTuple):
    """A number, and whether it was measured, computed or published."""

    value: float
    basis: Basis


class Step(NamedTuple):
    """A step of a plan."""

    name: str
    command: str
    hours: Figure
    gb: Figure | None  # read, written or transferred
    on_demand: float  # USD
    spot: float | None  # USD; None where there is no spot price


class Plan(NamedTuple):
    """The steps from an empty machine to an exported model, and what they assume."""

    title: str
    steps: list[Step]
    notes: list[str]


def make_plan(estimate: Estimate, options: PlanOptions) -> Plan:
    """Return the plan of a run on ImageNet-1k on one machine.

    Args:
        estimate: The estimate of the training.
        options: What the user gave.

    Raises:
        InputError: If the images are not ImageNet-1k's, or there are several machines.
    """
    _check(estimate, options)
    volume, volume_source = _volume(estimate, options)
    download = options.download or DOWNLOAD_MB_S
    cores = estimate.instance.vcpus / _VCPUS_PER_CORE
    parts = list(_parts(estimate, download, volume, cores))
    if options.download is not None:
        parts[0] = parts[0]._replace(hours=parts[0].hours._replace(basis="computed"))
    steps = [_priced(estimate, part) for part in parts]
    steps += _storage(estimate, options, sum(part.hours.value for part in parts), volume)
    notes = [
        f"archive: {ARCHIVE_GB:.0f} GB, {download:.1f} MB/s: "
        + (
            "--download"
            if options.download is not None
            else f"Kaggle's program printed 155G in {ARCHIVE_MINUTES:.0f} minutes; "
            "usnistgov/dioptra, obtaining-datasets.rst, read in November 2026"
        ),
        f"images: {IMAGES_GB:.1f} GB, the sizes of ILSVRC2012_img_train.tar and _val.tar; restart "
        "markers are not counted",
        f"volume: {volume:,.0f} MiB/s, reading and writing together: {volume_source}",
        f"packing: {PACK_MB_S_PER_CORE:.1f} MB/s per core, benchmarks/results/packing.txt, on "
        f"{cores:g} cores, half as many as the vCPUs, or what the volume gives",
        f"evaluating: {NUM_TRANSFORMS} transforms, on one GPU",
        f"export: {EXPORT_SECONDS:.0f} s on two CPU cores; the weights are {WEIGHTS_GB:.1f} GB",
        *(f"training: {text}" for text in estimate.assumptions if text != NOT_INCLUDED),
        "not included: startup, compilation, checkpoints, interruptions of spot, what a bucket "
        "costs",
    ]
    title = (
        f"{estimate.name} ({estimate.recipe.epochs} epochs) on one {estimate.machine}, from "
        "an empty machine to an exported model"
    )
    return Plan(title, steps, notes)


def _check(estimate: Estimate, options: PlanOptions) -> None:
    for name in ("download", "volume", "volume_gb"):
        value = getattr(options, name)
        if value is not None:
            require_positive(f"--{name.replace('_', '-')}", value)
    if estimate.options.nodes > 1:
        raise InputError("--plan is for one machine", fix="omit --nodes or --plan")
    if not estimate.is_imagenet:
        raise InputError(
            f"--plan downloads ImageNet-1k, and {estimate.name} would not train on it",
            expected=f"{NUM_IMAGES[TRAIN]:,} training images",
            found=f"{estimate.rates.num_train:,}",
            fix="omit --plan",
        )


def _volume(estimate: Estimate, options: PlanOptions) -> tuple[float, str]:
    """Return the MiB/s of the volume that archive, images and shards are on, and the source."""
    if options.volume is not None:
        return options.volume, "--volume"
    provider = estimate.provider
    if provider is None or provider.volume is not None:
        return GP3_MIB, "the default of a gp3 volume; pass --volume for another one"
    return LOCAL_MIB, "assumed of the machine's own storage; pass --volume for what it has"


class _Part(NamedTuple):
    name: str
    command: str
    hours: Figure
    gb: Figure | None


def _parts(estimate: Estimate, download: float, volume: float, cores: float) -> Iterator[_Part]:
    """Yield the steps without their price."""
    rates, recipe, name = estimate.rates, estimate.recipe, estimate.name
    mb_s = volume * 2**20 / 1e6
    num_images = rates.num_train + rates.num_validation
    shards_gb = num_images * rates.bytes_per_image / 1e9
    yield _Part(
        "download",
        "kaggle competitions download --competition imagenet-object-localization-challenge "
        "--path /data",
        Figure(ARCHIVE_GB * 1e3 / download / 3600, "published"),
        Figure(ARCHIVE_GB, "published"),
    )
    yield _Part(
        "unzip",
        "unzip -q /data/imagenet-object-localization-challenge.zip 'ILSVRC/Data/CLS-LOC/train/*' "
        "'ILSVRC/Data/CLS-LOC/val/*' 'LOC_*' -d /data/kaggle",
        Figure(2 * IMAGES_GB * 1e3 / mb_s / 3600, "computed"),
        Figure(IMAGES_GB, "published"),
    )
    packing = max(
        IMAGES_GB * 1e3 / (PACK_MB_S_PER_CORE * cores),
        (IMAGES_GB + shards_gb) * 1e3 / mb_s,
    )
    yield _Part(
        "pack",
        "python shard_imagenet.py pack --source /data/kaggle --out /data/shards "
        "--dataset imagenet1k",
        Figure(packing / 3600, "computed"),
        Figure(shards_gb, "computed"),
    )
    shards = "/data/shards"
    if estimate.volume.is_local and estimate.provider and estimate.provider.volume:
        shards = "/opt/dlami/nvme/shards"
        yield _Part(
            "copy",
            f"cp --recursive /data/shards/. {shards}",
            Figure(shards_gb * 1e3 / mb_s / 3600, "computed"),
            Figure(shards_gb, "computed"),
        )
    yield _Part(
        "train",
        f"accelerate launch --config_file {launcher_config(estimate)} train_accelerate.py "
        f"--recipe {name} --shards {shards} --run runs/{name}",
        Figure(duration(recipe, rates).hours, "computed"),
        Figure(rates.num_train * rates.bytes_per_image / 1e9, "computed"),
    )
    one_gpu = rates.gpus_at(recipe.data.eval_size) / estimate.instance.gpus / EVALUATION_COST
    evaluating = NUM_TRANSFORMS * NUM_IMAGES[VALIDATION] / min(one_gpu, rates.loader)
    yield _Part(
        "evaluate",
        f"python -m imagenet_rn50 evaluate --model runs/{name} --shards {shards} "
        "--out exports/evaluation",
        Figure(evaluating / 3600, "computed"),
        Figure(rates.num_validation * rates.bytes_per_image / 1e9, "computed"),
    )
    yield _Part(
        "export",
        f"python -m imagenet_rn50 export --run runs/{name} --out exports/{name} "
        "--metrics exports/evaluation/metrics.json",
        Figure(EXPORT_SECONDS / 3600, "measured"),
        Figure(WEIGHTS_GB, "computed"),
    )


def launcher_config(estimate: Estimate) -> str:
    """Return the configuration file of the launcher for a machine, or a placeholder."""
    name = _CONFIGS.get((estimate.instance.gpus, estimate.precision))
    return f"accelerate_configs/{name}.yaml" if name else UNKNOWN_CONFIG


def _priced(estimate: Estimate, part: _Part) -> Step:
    """Return a step with what the machine costs meanwhile."""
    instance, hours = estimate.instance, part.hours.value
    spot = None if instance.spot is None else hours * instance.spot
    return Step(*part, on_demand=hours * instance.on_demand, spot=spot)


def _storage(
    estimate: Estimate, options: PlanOptions, hours: float, volume: float
) -> Iterator[Step]:
    """Yield the volume, which costs the same at any price of the machine."""
    price = estimate.provider.volume if estimate.provider else None
    if price is None:
        return
    a_month = options.volume_gb * price.gb_month + max(volume - GP3_MIB, 0) * price.mib_s_month
    cost = a_month / HOURS_A_MONTH * hours
    spot = None if estimate.instance.spot is None else cost
    yield Step(
        "volume",
        f"gp3, {options.volume_gb:g} GB, {volume:g} MiB/s, meanwhile ({price.source})",
        Figure(hours, "computed"),
        None,
        cost,
        spot,
    )


def format_plan(plan: Plan, estimate: Estimate, *, markdown: bool) -> str:
    """Return a plan as a table, as text or as Markdown."""
    head = ("step", "hours", "GB", "on demand", "spot", "command")
    rows = [_cells(step, markdown=markdown) for step in plan.steps]
    rows.append(_total(plan.steps))
    legend = (
        "p: published by others, c: computed from the assumptions below, m: measured by this "
        "project. Dollars are computed from published prices."
    )
    hours = sum(step.hours.value for step in plan.steps if step.name != "volume")
    sessions = [line for line in session_lines(estimate, hours) if line]
    if markdown:
        lines = [f"**{plan.title}**", ""]
        table = [(step, command, *numbers) for step, *numbers, command in (head, _RULE, *rows)]
        lines += [f"| {' | '.join(row)} |" for row in table]
        lines += ["", *sessions, legend, "", "<details><summary>Assumptions</summary>", ""]
        return "\n".join([*lines, *(f"- {note}" for note in plan.notes), "", "</details>"])
    lines = [plan.title, ""]
    lines += [_LINE.format(*row).rstrip() for row in (head, *rows)]
    lines += ["", *sessions, legend, "", "assumptions:"]
    return "\n".join([*lines, *(f"  {note}" for note in plan.notes)])


_RULE = ("---", "---:", "---:", "---:", "---:", "---")
_LINE = "{:<9}{:>9}{:>9}{:>12}{:>12}  {}"


def _cells(step: Step, *, markdown: bool) -> tuple[str, ...]:
    """Return the cells of a step."""
    is_command = step.name != "volume"
    command = f"`{step.command}`" if markdown and is_command else step.command
    return (
        step.name,
        _marked(step.hours, _hours(step.hours.value)) if is_command else "",
        _marked(step.gb, f"{step.gb.value:.3g}") if step.gb else "",
        f"{dollars(step.on_demand)} c",
        "-" if step.spot is None else f"{dollars(step.spot)} c",
        command,
    )


def _total(steps: list[Step]) -> tuple[str, ...]:
    hours = sum(step.hours.value for step in steps if step.name != "volume")
    spots = [step.spot for step in steps if step.spot is not None]
    return (
        "total",
        f"{_hours(hours)} c",
        "",
        f"{dollars(sum(step.on_demand for step in steps))} c",
        f"{dollars(sum(spots))} c" if spots else "-",
        "",
    )


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if hours >= 0.01 else "<0.01"


def _marked(figure: Figure, text: str) -> str:
    return f"{text} {_MARKS[figure.basis]}"
