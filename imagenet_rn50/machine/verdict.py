"""What measurements mean: what holds training up and what moves it, and what would stop it.

A sample takes the same way in every run: volume, loader, device. The slowest of the three sets the
pace, so each is told in images/s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from imagenet_rn50.formatting import counted, rate_text
from imagenet_rn50.machine.compute import DeviceRates
from imagenet_rn50.machine.decoding import DecodingRates
from imagenet_rn50.machine.disk import DiskRates
from imagenet_rn50.machine.facts import KEPT_IN_MEMORY, Machine, most_workers
from imagenet_rn50.recipe import Recipe

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
