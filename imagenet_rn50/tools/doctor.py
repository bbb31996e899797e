"""Measure a machine and report its bottleneck, and what would keep a run from starting.

A sample passes three stages: volume, loader, device. The slowest one sets the pace, so each is
reported in images/s (measure.py), with what makes the slowest faster. A blocker is a problem that
stops a run: damaged shards, too little shared memory, too few open files, a micro batch that does
not fit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from imagenet_rn50.peaks import format_utilisation
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.shards.imagenet1k import NUM_CLASSES
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest, Split
from imagenet_rn50.shards.store import CachedShards, ShardStore, open_shards
from imagenet_rn50.shards.verify import verify
from imagenet_rn50.tools.estimate import NUM_PARAMETERS
from imagenet_rn50.tools.measure import (
    MAX_BYTES,
    DecodingRates,
    DeviceRates,
    DiskRates,
    first_shards,
    measure_all_reduce,
    measure_decoding,
    measure_devices,
    measure_disk,
)
from imagenet_rn50.tools.system_info import (
    PAGE_CACHE_FRACTION,
    Machine,
    most_workers,
    read_machine,
    volume_of,
)
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.formatting import counted, rate_text

# Batches of a rank in shared memory: torch's DataLoader prefetches two per worker, one is being
# copied, and one is in use.
_PREFETCHED_PER_WORKER = 2
_IN_USE = 2
# Open files of a process: shards, memory of the batches, libraries.
_FILES = 128
_FILES_PER_WORKER = 16
_VOLUME = "the volume of the shards"
_SMALL = 30_000  # bytes per image; what ImageNet has after resizing to 256 px
_CPU = "the CPU's training step"
_RESIZE = "pack with --resize short=256"
_MAX_BLOCKERS_SHOWN = 5


@dataclass(frozen=True)
class PackedShards:
    """The properties of a shard set that speed depends on.

    Attributes:
        num_samples: Training samples.
        num_bytes: Bytes that an epoch reads of the training shards.
        num_validation: Validation samples.
        volume: Filesystem, device and model of the volume that holds them.
        is_resized: Whether larger images were resized during packing.
        has_markers: Whether restart markers were added during packing.
    """

    num_samples: int
    num_bytes: int
    num_validation: int
    volume: str
    is_resized: bool = False
    has_markers: bool = False

    @property
    def packing_fixes(self) -> list[str]:
        """Options of `pack` that were not used and make images faster to read and decode."""
        if self.bytes_per_image < _SMALL:
            return []
        markers = [] if self.has_markers else ["pack with restart markers (jpegtran)"]
        return markers if self.is_resized else [*markers, _RESIZE]

    @property
    def bytes_per_image(self) -> float:
        """Bytes of the shards, tar headers included, divided by their samples."""
        return self.num_bytes / self.num_samples


@dataclass(frozen=True)
class Stage:
    """A stage that every sample passes, and what makes it faster."""

    name: str
    images_per_second: float
    fix: str


def stages(
    machine: Machine,
    packed: PackedShards | None,
    disk: DiskRates | None,
    decoding: DecodingRates | None,
    devices: list[DeviceRates],
) -> list[Stage]:
    """Return the stages that were measured, in the order in which a sample passes them."""
    found = []
    if packed and disk and disk.is_enough:
        rate = disk.sequential * 2**20 / packed.bytes_per_image
        found.append(Stage(_VOLUME, rate, _volume_fix(packed)))
    if decoding:
        fix = _loader_fix(machine, packed, decoding, num_ranks=len(devices))
        found.append(Stage("the loader", decoding.all_workers, fix))
    precision, rate = best_precision(devices)
    if not rate:
        return found  # a blocker: the micro batch does not fit
    if devices[0].memory_bytes is None:
        return [*found, Stage(_CPU, rate, "train on a GPU (docs/ec2.md)")]
    fix = f"--mixed_precision {precision} (accelerate_configs/), or a machine with more of them"
    return [*found, Stage("the GPUs", rate, fix)]


def best_precision(devices: list[DeviceRates]) -> tuple[str, float]:
    """Return the fastest precision of all devices together, and their images/s in it."""
    sums = {name: sum(device.steps[name] for device in devices) for name in devices[0].steps}
    return max(sums.items(), key=lambda item: item[1])


def bottleneck(found: list[Stage], machine: Machine, packed: PackedShards | None) -> str:
    """Return a sentence that names the slowest stage, its images/s and what makes it faster."""
    if not found:
        return "The bottleneck is not known: nothing could be measured."
    slowest = min(found, key=lambda stage: stage.images_per_second)
    others = [stage for stage in found if stage is not slowest]
    text = f"The bottleneck is {slowest.name}: {rate_text(slowest.images_per_second)} images/s"
    if slowest.name == _VOLUME and fits_memory(machine, packed):
        text += " in the first epoch; later epochs read from memory"
    if others:
        second = min(others, key=lambda stage: stage.images_per_second)
        text += f" ({second.name}: {rate_text(second.images_per_second)})"
    if found[-1].name == _CPU and others:
        text += "; a run is slower, for loader and training share the cores"
    return f"{text}. To speed it up: {slowest.fix}."


def fits_memory(machine: Machine, packed: PackedShards | None) -> bool:
    """Return whether the page cache holds all training shards, so that they are read once."""
    return packed is not None and packed.num_bytes <= PAGE_CACHE_FRACTION * machine.memory_bytes


def needed_shared_memory(recipe: Recipe, num_ranks: int, num_workers: int) -> int:
    """Return the most bytes that the batches of a machine take in /dev/shm.

    Args:
        recipe: Its image sizes and micro batch.
        num_ranks: Ranks on this machine.
        num_workers: Loader workers of each rank.
    """
    data = recipe.data
    side = max(data.train_size, data.final_size or 0, data.eval_size)
    batch = recipe.micro_batch * 3 * side**2
    return num_ranks * (_PREFETCHED_PER_WORKER * num_workers + _IN_USE) * batch


def machine_blockers(
    machine: Machine, recipe: Recipe, num_ranks: int, num_workers: int
) -> Iterator[str]:
    """Yield each property of the machine that would stop a run, with its fix.

    Args:
        machine: The machine.
        recipe: The recipe that would run.
        num_ranks: Ranks on this machine.
        num_workers: Loader workers of each rank.
    """
    needed = needed_shared_memory(recipe, num_ranks, num_workers)
    free = machine.shared_memory_bytes
    if num_workers and free is not None and free < needed:
        yield (
            f"/dev/shm has {free / 1e9:.2f} GB free, but the batches of {num_ranks} ranks with "
            f"{num_workers} workers take up to {needed / 1e9:.2f} GB: "
            f"`docker run --shm-size {-(-needed // 10**9)}g`, "
            f"`sudo mount -o remount,size={-(-needed // 10**9)}G /dev/shm`, or fewer --workers"
        )
    files = _FILES + _FILES_PER_WORKER * num_workers
    if 0 <= machine.open_files < files:
        yield (
            f"the limit of open files is {machine.open_files}, but training with {num_workers} "
            f"workers opens up to {files}: `ulimit -n {files}`"
        )


def device_blockers(recipe: Recipe, devices: list[DeviceRates]) -> Iterator[str]:
    """Yield each device that cannot hold a micro batch in any precision, with the fix."""
    for device in devices:
        if not any(device.steps.values()):
            yield (
                f"{device.name} has too little memory for a micro batch of {device.batch} images "
                f"of {device.size} px in any precision: "
                f"--micro-batch {max(recipe.micro_batch // 2, 1)}"
            )


def _volume_fix(packed: PackedShards) -> str:
    smaller = [fix for fix in packed.packing_fixes if fix == _RESIZE]
    if "Elastic Block Store" not in packed.volume:
        return _either(["move the shards to a faster disk", *smaller])
    copy = "copy the shards to the instance's own NVMe (docs/ec2.md)"
    return _either(["`aws ec2 modify-volume --throughput`", copy, *smaller])


def _loader_fix(
    machine: Machine, packed: PackedShards | None, decoding: DecodingRates, num_ranks: int
) -> str:
    """Return what makes the loader faster; each rank needs a core of its own."""
    packing = packed.packing_fixes if packed else []
    of_each_rank = most_workers(machine.cores, num_ranks) // num_ranks
    if decoding.num_workers < of_each_rank * num_ranks:
        cores, ranks = counted(machine.cores, "core"), counted(num_ranks, "rank")
        workers = f"pass --workers {of_each_rank} ({cores}, {ranks})"
        return _either([workers, *packing])
    return _either([*packing, "use a machine with more cores"])


def _either(ways: list[str]) -> str:
    """Join alternatives: `a, b, or c`."""
    *first, last = ways
    return f"{', '.join(first)}, or {last}" if first else last


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `doctor` found; its JSON is the input of `estimate --measured`.

    Attributes:
        recipe: Name of the recipe that would run.
        machine: The machine.
        packed: The shards; None if none were given, or if they are damaged.
        disk: Speed of reading them.
        decoding: Speed of the loader.
        devices: Speed of each device.
        all_reduce_gb: Bus bandwidth of an all-reduce of the gradients, GB/s; None with one device.
        blockers: What would stop a run, each with its fix.
        bottleneck: The slowest stage, in a sentence.
        shards: Folder of the shards, if one was given.
    """

    recipe: str
    machine: Machine
    packed: PackedShards | None
    disk: DiskRates | None
    decoding: DecodingRates | None
    devices: list[DeviceRates]
    all_reduce_gb: float | None
    blockers: list[str]
    bottleneck: str
    shards: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the diagnosis as `estimate --measured` reads it."""
        return asdict(self)


def diagnose(
    recipe: Recipe,
    name: str,
    shards: str | None,
    num_workers: int,
    seconds: float,
    *,
    cache: Path | None = None,
) -> Diagnosis:
    """Measure this machine for a recipe.

    Args:
        recipe: The recipe that would run.
        name: Its name.
        shards: Folder of the manifest, a path or an address; without it, volume and loader are
            skipped.
        num_workers: Loader workers of each rank.
        seconds: Time of each measurement.
        cache: Where remote shards are kept; their volume is measured, by the first ones.

    Raises:
        InputError: If the folder has no manifest, or remote shards no cache.
    """
    machine, num_ranks = read_machine(), max(torch.cuda.device_count(), 1)
    problems = list(machine_blockers(machine, recipe, num_ranks, num_workers))
    packed = disk = decoding = None
    num_classes = NUM_CLASSES
    if shards is not None:
        store = open_shards(shards, cache=cache)
        packed = _check_shards(shards, store, cache, problems)
    if shards is not None and packed is not None:
        train = Manifest.load(store.folder).split(TRAIN)
        if isinstance(store, CachedShards):
            train = first_shards(train, MAX_BYTES)  # all would be downloaded
        num_classes = int(train.labels.max()) + 1
        _log_step("reading the shards from their volume")
        disk = measure_disk(store, train, seconds)
        all_workers = min(num_workers * num_ranks, most_workers(machine.cores, num_ranks))
        decoding = _measure_loader(store, train, recipe, all_workers, seconds, problems)
    _log_step("training on each device")
    devices = measure_devices(recipe, seconds, num_classes)
    all_reduce = None
    if len(devices) > 1:
        _log_step("all-reducing gradients")
        all_reduce = measure_all_reduce(len(devices), num_floats=NUM_PARAMETERS)
    problems += device_blockers(recipe, devices)
    sentence = bottleneck(stages(machine, packed, disk, decoding, devices), machine, packed)
    return Diagnosis(
        name,
        machine,
        packed,
        disk,
        decoding,
        devices,
        all_reduce,
        problems,
        sentence,
        shards,
    )


def _check_shards(
    shards: str, store: ShardStore, cache: Path | None, problems: list[str]
) -> PackedShards | None:
    """Return the shards' properties, or None and one problem per finding if they are damaged."""
    _log_step("checking the shards against their manifest")
    findings = verify(shards, quick=True, cache=cache)
    problems += [f"{shards} does not verify: {finding}" for finding in findings]
    if findings:
        return None
    manifest = Manifest.load(store.folder)
    train = manifest.split(TRAIN)
    return PackedShards(
        num_samples=train.num_samples,
        num_bytes=manifest.num_bytes_of(TRAIN),
        num_validation=manifest.split(VALIDATION).num_samples,
        volume=volume_of(store.fetch(train.shards[0]).parent),
        is_resized=bool(manifest.pack_options.get("resize")),
        has_markers=bool(manifest.pack_options.get("restart_blocks")),
    )


def _measure_loader(
    store: ShardStore,
    train: Split,
    recipe: Recipe,
    num_workers: int,
    seconds: float,
    problems: list[str],
) -> DecodingRates | None:
    """Measure the loader; return None if there is a blocker."""
    if problems:
        return None
    _log_step("loading images from shards in memory")
    try:
        return measure_decoding(store, train, recipe, num_workers, seconds)
    except InputError as error:  # a sample that is damaged inside a shard of the right size
        problems.append(str(error))
        return None


def format_diagnosis(found: Diagnosis) -> str:
    """Return a table of the measurements, the bottleneck and the blockers."""
    rows = [*_machine_rows(found.machine), *_measured_rows(found)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    lines += ["", found.bottleneck]
    shown = found.blockers[:_MAX_BLOCKERS_SHOWN]
    lines += [f"BLOCKER: {problem}" for problem in shown]
    if len(found.blockers) > len(shown):
        lines.append(f"and {len(found.blockers) - len(shown)} more")
    return "\n".join(lines)


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    shared = machine.shared_memory_bytes
    rows = [
        ("cores", f"{machine.cores}"),
        ("memory", f"{machine.memory_bytes / 2**30:.0f} GiB"),
        ("/dev/shm, free", "none" if shared is None else f"{shared / 2**30:.1f} GiB"),
        ("open files, limit", f"{machine.open_files}"),
        ("versions", ", ".join(f"{name} {text}" for name, text in machine.versions.items())),
    ]
    return rows + ([("NVIDIA driver", machine.driver)] if machine.driver else [])


def _measured_rows(found: Diagnosis) -> list[tuple[str, str]]:
    rows = []
    if found.packed and found.disk:
        disk, size = found.disk, found.packed.bytes_per_image
        rate = disk.sequential * 2**20 / size
        note = (
            "" if disk.is_enough else f"  (of only {disk.num_bytes / 2**20:.2g} MiB: not reliable)"
        )
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
        why = "see the blockers" if found.shards else "pass --shards"
        rows.append(("loader", f"not measured: {why}"))
    for number, device in enumerate(found.devices):
        label = device.name if device.memory_bytes is None else f"GPU {number}, {device.name}"
        if device.copy_gb is not None:
            rows.append((f"{label}: copies", f"{device.copy_gb:.1f} GB/s"))
        rows += [(f"{label}: {name}", _step_text(device, name)) for name in device.steps]
    if found.all_reduce_gb is not None:
        rows.append(("all-reduce, all GPUs", f"{found.all_reduce_gb:.1f} GB/s on the bus"))
    return rows


def _step_text(device: DeviceRates, precision: str) -> str:
    batch, rate = f"{device.batch} of {device.size} px", device.steps[precision]
    if not rate:
        return f"out of memory with {batch}"
    text = f"{rate_text(rate)} images/s, {batch} a step"
    used = device.utilisation(precision)
    return f"{text}, {format_utilisation(used)}" if used else text


def _log_step(what: str) -> None:
    """Print a step on stderr, apart from the result."""
    print(f"{what} ...", file=sys.stderr, flush=True)
