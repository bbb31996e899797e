"""The doctor: measures a machine from the volume to the devices, and says what it found."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from imagenet_rn50.errors import InputError
from imagenet_rn50.formatting import rate_text
from imagenet_rn50.machine.compute import NUM_CLASSES, DeviceRates, measure_devices
from imagenet_rn50.machine.decoding import DecodingRates, measure_decoding
from imagenet_rn50.machine.disk import DiskRates, measure_disk
from imagenet_rn50.machine.facts import Machine, most_workers, read_machine, volume_of
from imagenet_rn50.machine.links import measure_all_reduce
from imagenet_rn50.machine.nodes import PARAMETERS
from imagenet_rn50.machine.verdict import (
    Packed,
    bottleneck,
    device_blockers,
    machine_blockers,
    stages,
)
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest, Split
from imagenet_rn50.shards.verify import verify

_FINDINGS_SHOWN = 5


@dataclass(frozen=True)
class Examination:
    """All that was found.

    Attributes:
        recipe: Name of the recipe that it was measured for.
        machine: What the machine is.
        packed: The shards; None when none were named, or they are damaged.
        disk: How fast they are read.
        decoding: How fast pictures are made of them.
        devices: How fast each device is.
        all_reduce_gb: Bus bandwidth of adding up gradients, GB/s; None with less than two GPUs.
        blockers: What would stop a run.
        bottleneck: What holds it up.
        shards: Folder of the shards; None when none were named.
    """

    recipe: str
    machine: Machine
    packed: Packed | None
    disk: DiskRates | None
    decoding: DecodingRates | None
    devices: list[DeviceRates]
    all_reduce_gb: float | None
    blockers: list[str]
    bottleneck: str
    shards: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns it as `estimate --measured` reads it."""
        return asdict(self)


def examine(
    recipe: Recipe, name: str, shards: Path | None, num_workers: int, seconds: float
) -> Examination:
    """Measures this machine for a recipe.

    Args:
        recipe: What would run.
        name: Its name.
        shards: Folder of shards on this machine; None leaves volume and loader out.
        num_workers: Loader processes of each rank.
        seconds: How long each single thing is measured.

    Raises:
        InputError: When the folder holds no manifest.
    """
    machine, num_ranks = read_machine(), max(torch.cuda.device_count(), 1)
    problems = list(machine_blockers(machine, recipe, num_ranks, num_workers))
    packed = disk = decoding = None
    num_classes = NUM_CLASSES
    if shards is not None:
        packed = _look_at(shards, problems)
    if shards is not None and packed is not None:
        train = Manifest.load(shards).split(TRAIN)
        num_classes = int(train.labels.max()) + 1
        _tell("reading shards from the volume")
        disk = measure_disk(shards, train, seconds)
        all_workers = min(num_workers * num_ranks, most_workers(machine.cores, num_ranks))
        decoding = _measure_loader(shards, train, recipe, all_workers, seconds, problems)
    _tell("training on each device")
    devices = measure_devices(recipe, seconds, num_classes)
    all_reduce = None
    if len(devices) > 1:
        _tell("adding up gradients")
        all_reduce = measure_all_reduce(len(devices), num_floats=PARAMETERS)
    problems += device_blockers(recipe, devices)
    sentence = bottleneck(stages(machine, packed, disk, decoding, devices), machine, packed)
    return Examination(
        name,
        machine,
        packed,
        disk,
        decoding,
        devices,
        all_reduce,
        problems,
        sentence,
        None if shards is None else str(shards),
    )


def _look_at(shards: Path, problems: list[str]) -> Packed | None:
    """Returns what the shards are; None, and a problem for each finding, when they are not whole.

    Raises:
        InputError: When the folder holds no manifest.
    """
    _tell("comparing the shards with their manifest")
    findings = verify(shards, quick=True)
    problems += [f"{shards} does not verify: {finding}" for finding in findings]
    if findings:
        return None
    manifest = Manifest.load(shards)
    train = manifest.split(TRAIN)
    return Packed(
        num_samples=train.num_samples,
        num_bytes=sum(shard.num_bytes for shard in train.shards),
        num_validation=manifest.split(VALIDATION).num_samples,
        volume=volume_of(shards),
        is_resized=bool(manifest.options.get("resize")),
        has_markers=bool(manifest.options.get("restart_blocks")),
    )


def _measure_loader(
    shards: Path,
    train: Split,
    recipe: Recipe,
    num_workers: int,
    seconds: float,
    problems: list[str],
) -> DecodingRates | None:
    """Measures the loader; None when this machine has a problem that would stop it."""
    if problems:
        return None
    _tell("making pictures of some of them, in memory")
    try:
        return measure_decoding(shards, train, recipe, num_workers, seconds)
    except InputError as error:  # a sample that is damaged inside a shard of the right size
        problems.append(str(error))
        return None


def report(found: Examination) -> str:
    """Returns the examination as a table, the bottleneck, and what would stop a run."""
    rows = [*_machine_rows(found.machine), *_measured_rows(found)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    lines += ["", found.bottleneck]
    shown = found.blockers[:_FINDINGS_SHOWN]
    lines += [f"BLOCKER: {problem}" for problem in shown]
    if len(found.blockers) > len(shown):
        lines.append(f"and {len(found.blockers) - len(shown)} more")
    return "\n".join(lines)


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    """Returns what the machine is."""
    shared = machine.shared_memory_bytes
    rows = [
        ("cores", f"{machine.cores}"),
        ("memory", f"{machine.memory_bytes / 2**30:.0f} GiB"),
        ("/dev/shm, free", "none" if shared is None else f"{shared / 2**30:.1f} GiB"),
        ("open files, limit", f"{machine.open_files}"),
        ("versions", ", ".join(f"{name} {text}" for name, text in machine.versions.items())),
    ]
    return rows + ([("NVIDIA driver", machine.driver)] if machine.driver else [])


def _measured_rows(found: Examination) -> list[tuple[str, str]]:
    """Returns what was measured, in the order in which a sample passes."""
    rows = []
    if found.packed and found.disk:
        disk, size = found.disk, found.packed.bytes_per_image
        rate = disk.sequential * 2**20 / size
        note = "" if disk.is_enough else f"  (only {disk.num_bytes / 2**20:.2g} MiB: says little)"
        rows += [
            (
                "shards",
                f"{found.packed.num_samples:,} images of {size / 1e3:.1f} kB, whole by size",
            ),
            ("their volume", found.packed.volume),
            (
                "cold read, shards",
                f"{disk.sequential:,.0f} MiB/s: {rate:,.0f} images/s{note}",
            ),
            ("cold read, samples", f"{disk.random:,.0f} MiB/s, one reader"),
        ]
    if found.decoding:
        decoding = found.decoding
        one = f"{decoding.one_worker:,.0f} images/s at {decoding.size} px"
        rows += [
            ("loader, 1 worker", one),
            (
                f"loader, all workers ({decoding.num_workers})",
                f"{decoding.all_workers:,.0f} images/s",
            ),
        ]
    else:
        why = "a blocker is in its way" if found.shards else "name --shards"
        rows.append(("loader", f"not measured: {why}"))
    for number, device in enumerate(found.devices):
        label = device.name if device.memory_bytes is None else f"GPU {number}, {device.name}"
        if device.copy_gb is not None:
            rows.append((f"{label}: copies", f"{device.copy_gb:.1f} GB/s"))
        rows += [
            (
                f"{label}: {precision}",
                f"{rate_text(rate)} images/s, {device.batch} of {device.size} px a step"
                if rate
                else f"no memory for {device.batch} of {device.size} px",
            )
            for precision, rate in device.steps.items()
        ]
    if found.all_reduce_gb is not None:
        rows.append(("gradients, all GPUs", f"{found.all_reduce_gb:.1f} GB/s on the bus"))
    return rows


def _tell(what: str) -> None:
    """Says what is under way, where it does not mix with the result."""
    print(f"{what} ...", file=sys.stderr, flush=True)
