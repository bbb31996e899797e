"""What measurements mean: what holds training up and what moves it, and what would stop it.

A sample takes the same way in every run: volume, loader, device. The slowest of the three sets the
pace, so each is told in images/s.

The doctor: measures a machine from the volume to the devices, and says what it found.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from imagenet_rn50.recipe import Recipe
from imagenet_rn50.shards.imagenet1k import NUM_CLASSES
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest, Split
from imagenet_rn50.shards.verify import verify
from imagenet_rn50.tools.estimate import PARAMETERS
from imagenet_rn50.tools.measure import (
    DecodingRates,
    DeviceRates,
    DiskRates,
    measure_all_reduce,
    measure_decoding,
    measure_devices,
    measure_disk,
)
from imagenet_rn50.tools.system_info import (
    KEPT_IN_MEMORY,
    Machine,
    most_workers,
    read_machine,
    volume_of,
)
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.formatting import counted, rate_text

# Batches of one rank that stand in shared memory at a time: torch's DataLoader asks each worker for
# two ahead, one is being copied, and one is in use.
_AHEAD_OF_EACH_WORKER = 2
_IN_USE = 2
# Files of one process: the shards a reader keeps open, the batches' memory, libraries.
_FILES = 128
_FILES_OF_EACH_WORKER = 16
_VOLUME = "the volume of the shards"
_SMALL = 30_000  # bytes of an image; resizing to 256 px leaves about so many of ImageNet's
_CPU = "the CPU's training step"
_RESIZE = "pack with --resize short=256"


@dataclass(frozen=True)
class Packed:
    """The shards, as far as speed depends on them.

    Attributes:
        num_samples: Training samples.
        num_bytes: Bytes of all training shards.
        num_validation: Validation samples.
        volume: What they stand on.
        is_resized: Whether larger pictures were scaled down when they were packed.
        has_markers: Whether restart markers were added then.
    """

    num_samples: int
    num_bytes: int
    num_validation: int
    volume: str
    is_resized: bool = False
    has_markers: bool = False

    @property
    def packing_fixes(self) -> list[str]:
        """Ways to pack them again that make training pictures faster to read and decode."""
        if self.bytes_per_image < _SMALL:
            return []
        markers = [] if self.has_markers else ["pack with restart markers (jpegtran)"]
        return markers if self.is_resized else [*markers, _RESIZE]

    @property
    def bytes_per_image(self) -> float:
        """Bytes of a shard for each of its samples, tar headers included."""
        return self.num_bytes / self.num_samples


@dataclass(frozen=True)
class Stage:
    """One of the three that a sample passes.

    Attributes:
        name: What it is.
        images_per_second: How fast it is.
        fix: What makes it faster.
    """

    name: str
    images_per_second: float
    fix: str


def stages(
    machine: Machine,
    packed: Packed | None,
    disk: DiskRates | None,
    decoding: DecodingRates | None,
    devices: list[DeviceRates],
) -> list[Stage]:
    """Returns the stages that were measured, in the order of the way."""
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
    fix = f"train in {precision} (accelerate_configs/), or on a machine with more of them"
    return [*found, Stage("the GPUs", rate, fix)]


def best_precision(devices: list[DeviceRates]) -> tuple[str, float]:
    """Returns the precision in which all devices together are fastest, and their images/s."""
    sums = {name: sum(device.steps[name] for device in devices) for name in devices[0].steps}
    return max(sums.items(), key=lambda item: item[1])


def bottleneck(found: list[Stage], machine: Machine, packed: Packed | None) -> str:
    """Says in a sentence what holds training up, by how much, and what moves it."""
    if not found:
        return "What would hold training up is not known: nothing could be measured."
    slowest = min(found, key=lambda stage: stage.images_per_second)
    others = [stage for stage in found if stage is not slowest]
    text = (
        f"Training is held up by {slowest.name}, at {rate_text(slowest.images_per_second)} images/s"
    )
    if slowest.name == _VOLUME and fits_memory(machine, packed):
        text += " in the first epoch, after which they are in memory"
    if others:
        second = min(others, key=lambda stage: stage.images_per_second)
        text += f" ({second.name}: {rate_text(second.images_per_second)})"
    if found[-1].name == _CPU and others:
        text += ", and a run is slower: loader and training share the cores"
    return f"{text}; {slowest.fix}."


def fits_memory(machine: Machine, packed: Packed | None) -> bool:
    """Whether the page cache will hold all training shards, so that they are read once."""
    return packed is not None and packed.num_bytes <= KEPT_IN_MEMORY * machine.memory_bytes


def needed_shared_memory(recipe: Recipe, num_ranks: int, num_workers: int) -> int:
    """Returns the bytes that batches take in /dev/shm at a time.

    Args:
        recipe: Says how large a batch is.
        num_ranks: Ranks of this machine.
        num_workers: Loader processes of each rank.
    """
    data = recipe.data
    side = max(data.train_size, data.final_size or 0, data.eval_size)
    batch = recipe.micro_batch * 3 * side**2
    return num_ranks * (_AHEAD_OF_EACH_WORKER * num_workers + _IN_USE) * batch


def machine_blockers(
    machine: Machine, recipe: Recipe, num_ranks: int, num_workers: int
) -> Iterator[str]:
    """Yields what of a machine would stop a run, each with its fix.

    Args:
        machine: What it is.
        recipe: What would run.
        num_ranks: Ranks of this machine.
        num_workers: Loader processes of each rank.
    """
    needed = needed_shared_memory(recipe, num_ranks, num_workers)
    free = machine.shared_memory_bytes
    if num_workers and free is not None and free < needed:
        yield (
            f"/dev/shm has {free / 1e9:.2f} GB free, and batches of {num_ranks} ranks with "
            f"{num_workers} workers take up to {needed / 1e9:.2f} GB: "
            f"`docker run --shm-size {-(-needed // 10**9)}g`, "
            f"`sudo mount -o remount,size={-(-needed // 10**9)}G /dev/shm`, or fewer --workers"
        )
    files = _FILES + _FILES_OF_EACH_WORKER * num_workers
    if 0 <= machine.open_files < files:
        yield (
            f"a process may open {machine.open_files} files, and training with {num_workers} "
            f"workers takes up to {files}: `ulimit -n {files}`"
        )


def device_blockers(recipe: Recipe, devices: list[DeviceRates]) -> Iterator[str]:
    """Yields which devices cannot hold a micro batch in any precision, each with its fix."""
    for device in devices:
        if not any(device.steps.values()):
            yield (
                f"{device.name} has no memory for a micro batch of {device.batch} of "
                f"{device.size} px, in any precision: "
                f"--micro-batch {max(recipe.micro_batch // 2, 1)}"
            )


def _volume_fix(packed: Packed) -> str:
    """Says what makes shards come faster."""
    smaller = [fix for fix in packed.packing_fixes if fix == _RESIZE]
    if "Elastic Block Store" not in packed.volume:
        return _either(["move the shards to a faster disk", *smaller])
    copy = "copy the shards to the instance's own NVMe (docs/ec2.md)"
    return _either(["`aws ec2 modify-volume --throughput`", copy, *smaller])


def _loader_fix(
    machine: Machine, packed: Packed | None, decoding: DecodingRates, num_ranks: int
) -> str:
    """Says what makes the loader faster; each rank of training needs a core for itself."""
    packing = packed.packing_fixes if packed else []
    of_each_rank = most_workers(machine.cores, num_ranks) // num_ranks
    if decoding.num_workers < of_each_rank * num_ranks:
        cores = f"{counted(machine.cores, 'core')} have room for them beside"
        workers = f"give it --workers {of_each_rank}, for {cores} {counted(num_ranks, 'rank')}"
        return _either([workers, *packing])
    return _either([*packing, "take a machine with more cores"])


def _either(ways: list[str]) -> str:
    """Returns ways to do something as one phrase: a, b, or c."""
    *first, last = ways
    return f"{', '.join(first)}, or {last}" if first else last


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
