"""How fast the devices of this machine add up gradients over each other.

How fast the volume of the shards is, with nothing of them in memory.

The kernel is told to forget the shards first. They are read front to back, as training reads ahead,
and then sample by sample at random, as it would have to without reading ahead.

How many images/s the loader makes, the one that training uses, from shards in memory.

The volume is measured for itself (disk.py), which leaves no shard in memory. So a few are read
whole first, and pictures are made of these alone, again and again.

How fast the devices are: copies from the host, and training steps in each precision.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn

from imagenet_rn50.classes import Classes
from imagenet_rn50.data.loader import Loader, build_loader
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.data.transforms import TrainTransform, normalise
from imagenet_rn50.model import build_model, logits_of
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.shards.manifest import Split
from imagenet_rn50.tools.system_info import available_memory
from imagenet_rn50.training.losses import training_loss
from imagenet_rn50.training.optim import build_optimizer
from imagenet_rn50.utils.private_apis import base_of

_ROUNDS = 10


def measure_all_reduce(world_size: int, *, backend: str = "nccl", num_floats: int) -> float:
    """Measures the sum of a tensor over processes of this machine, one a device.

    Args:
        world_size: How many take part, at least 2.
        backend: nccl for GPUs; gloo for the CPU.
        num_floats: Size of the tensor, as large as the gradients of a model, float32.

    Returns:
        Bus bandwidth in GB/s: 2 (n - 1) / n x bytes / seconds, which is what each link carries
        whatever n is (NVIDIA's nccl-tests, PERFORMANCE.md).
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, backend, num_floats, Path(folder))
        spawn(_take_part, arguments, nprocs=world_size)
        seconds = float((Path(folder) / "seconds").read_text(encoding="utf-8"))
    return 2 * (world_size - 1) / world_size * 4 * num_floats / seconds / 1e9


def _take_part(rank: int, world_size: int, backend: str, num_floats: int, folder: Path) -> None:
    """Is one of the processes; the first notes how long a sum took."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    meeting = f"file://{folder.absolute() / 'store'}"
    distributed.init_process_group(backend, meeting, rank=rank, world_size=world_size)
    gradients = torch.ones(num_floats, device=device)
    distributed.all_reduce(gradients)  # connections are made with the first
    assert gradients[0].item() == world_size
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        distributed.all_reduce(gradients)
    if backend == "nccl":
        torch.cuda.synchronize(device)
    if rank == 0:
        seconds = (time.perf_counter() - began) / _ROUNDS
        (folder / "seconds").write_text(str(seconds), encoding="utf-8")
    distributed.destroy_process_group()


_BUFFER_BYTES = 8 << 20
_ENOUGH_BYTES = 64 << 20
_CAN_FORGET = hasattr(os, "posix_fadvise")  # not on macOS


@dataclass(frozen=True)
class DiskRates:
    """How fast shards come from their volume.

    Attributes:
        sequential: Whole shards, front to back, one reader; MiB/s.
        random: Single samples at random, one reader; MiB/s.
        num_bytes: How much was read front to back.
    """

    sequential: float
    random: float
    num_bytes: int

    @property
    def is_enough(self) -> bool:
        """Whether the rates say something about the volume: much was read, and not from memory."""
        return _CAN_FORGET and self.num_bytes >= _ENOUGH_BYTES


def measure_disk(folder: Path, split: Split, seconds: float) -> DiskRates:
    """Measures reading shards that are not in memory.

    Args:
        folder: Where the shards stand.
        split: What stands in them.
        seconds: How long each of the two ways is tried, at most.
    """
    paths = [folder / shard.name for shard in split.shards]
    for path in paths:
        _forget(path)
    num_bytes, sequential = _read_all(_front_to_back(paths), seconds)
    for path in paths:
        _forget(path)
    _, random = _read_all(_at_random(paths, split), seconds)
    return DiskRates(sequential, random, num_bytes)


def read_whole(paths: list[Path]) -> None:
    """Reads files front to back, after which they are in memory, as far as there is room."""
    for _ in _front_to_back(paths):
        pass


def _read_all(sizes: Iterator[int], seconds: float) -> tuple[int, float]:
    """Reads until it is done or the time is up; returns bytes, and MiB/s."""
    began, num_bytes = time.perf_counter(), 0
    for size in sizes:
        num_bytes += size
        if time.perf_counter() - began > seconds:
            break
    return num_bytes, num_bytes / (time.perf_counter() - began) / 2**20


def _front_to_back(paths: list[Path]) -> Iterator[int]:
    """Reads whole files; yields how many bytes came with each piece."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                yield size


def _at_random(paths: list[Path], split: Split) -> Iterator[int]:
    """Reads each sample once, in no order; yields its bytes."""
    descriptors: dict[int, int] = {}
    try:
        for index in np.random.default_rng(0).permutation(split.num_samples).tolist():
            shard = split.shard_of(index)
            if shard not in descriptors:
                descriptors[shard] = os.open(paths[shard], os.O_RDONLY | os.O_CLOEXEC)
                if _CAN_FORGET:
                    os.posix_fadvise(descriptors[shard], 0, 0, os.POSIX_FADV_RANDOM)
            length, offset = int(split.lengths[index]), int(split.offsets[index])
            yield len(os.pread(descriptors[shard], length, offset))
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _forget(path: Path) -> None:
    """Asks the kernel to drop a file from memory; what is not yet on disk is written first."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if _CAN_FORGET:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


_BATCH = 64  # a smaller one than training's, so that a slow machine finishes several
_EPOCHS = 10**6  # of the few shards; more than can be read in the time
_MOST_BYTES = 2 * 10**9  # of shards in memory; half a minute of reading from a slow volume
_PART_OF_AVAILABLE = 0.5  # the loader needs some memory, too


@dataclass(frozen=True)
class DecodingRates:
    """How fast training pictures are made.

    Attributes:
        one_worker: images/s of a single loader process.
        all_workers: images/s of all of them together.
        num_workers: How many these are.
        size: Side of the pictures, px.
    """

    one_worker: float
    all_workers: float
    num_workers: int
    size: int


def measure_decoding(
    folder: Path, split: Split, recipe: Recipe, num_workers: int, seconds: float
) -> DecodingRates:
    """Measures decoding and augmentation, with one worker and with all, without the volume.

    Args:
        folder: Where the shards stand.
        split: What stands in them.
        recipe: Says what is done to pictures.
        num_workers: Loader processes of all ranks together.
        seconds: How long each is measured.
    """
    few = first_shards(split, min(_MOST_BYTES, _PART_OF_AVAILABLE * available_memory()))
    read_whole([folder / shard.name for shard in few.shards])
    size = recipe.data.size_at(0)
    # A pass over a few shards is short: crops that grow from epoch to epoch would not stay at it.
    still = {"train_size": size, "final_size": None, "growth": None}
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=still)})
    one = _images_per_second(folder, few, recipe, 1, seconds)
    together = _images_per_second(folder, few, recipe, num_workers, seconds)
    return DecodingRates(one, together, num_workers, size)


def first_shards(split: Split, num_bytes: float) -> Split:
    """Returns the part of a split that stands in its first shards.

    Args:
        split: The whole.
        num_bytes: How much the shards may have together; the first is taken in any case.
    """
    ends = np.cumsum([shard.num_bytes for shard in split.shards])
    num_shards = max(int(np.searchsorted(ends, num_bytes, side="right")), 1)
    stop = int(split.shard_starts[num_shards])
    return Split(
        split.shards[:num_shards],
        split.offsets[:stop],
        split.lengths[:stop],
        split.labels[:stop],
        split.keys[:stop],
    )


def _images_per_second(
    folder: Path, split: Split, recipe: Recipe, num_workers: int, seconds: float
) -> float:
    """Measures a loader once its workers are under way."""
    batch = min(_BATCH, recipe.micro_batch)
    loader = build_loader(
        folder,
        split,
        DistributedBatchSampler(start=0, stop=_EPOCHS * split.num_samples, batch=batch),
        TrainTransform(recipe.data, recipe.seed),
        order=ShardShuffleSampler(
            split.shard_sizes, seed=recipe.seed, window=recipe.data.shuffle_window
        ),
        num_workers=num_workers,
    )
    try:
        return _rate(loader, num_workers, seconds)
    finally:
        loader.close()


def _rate(loader: Loader, num_workers: int, seconds: float) -> float:
    """Returns images/s, without the batches that stood ready when the first was asked for."""
    batches = iter(loader)
    for _ in range(2 * num_workers + 1):
        next(batches)
    loader.stats()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(batches)
    return loader.stats().images_per_s


NUM_CLASSES = 1000  # ImageNet-1k's
_FEW = 2  # images; BatchNorm needs two
_LEAST_STEPS = 2
_SLOW_STEP = 10.0  # s; what a CPU prepares once is small against such a step, so one is enough
_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class DeviceRates:
    """How fast one device is.

    Attributes:
        name: What it calls itself.
        memory_bytes: Its own memory; None for a CPU.
        copy_gb: Copying batches from page-locked memory, GB/s; None for a CPU.
        steps: images/s of training steps, by Accelerate's name of the precision; 0 where the
            micro batch does not fit into the memory.
        batch: Images in a step.
        size: Side of the pictures, px.
    """

    name: str
    memory_bytes: int | None
    copy_gb: float | None
    steps: dict[str, float]
    batch: int
    size: int


def measure_devices(
    recipe: Recipe, seconds: float, num_classes: int = NUM_CLASSES
) -> list[DeviceRates]:
    """Measures every GPU alone, one after the other; the CPU where there is none.

    Args:
        recipe: Says what model, micro batch and size of pictures.
        seconds: How long each precision is measured, at least.
        num_classes: Classes of the model.
    """
    if not torch.cuda.is_available():
        return [measure_device(torch.device("cpu"), recipe, seconds, num_classes)]
    devices = (torch.device("cuda", number) for number in range(torch.cuda.device_count()))
    return [measure_device(device, recipe, seconds, num_classes) for device in devices]


def measure_device(
    device: torch.device, recipe: Recipe, seconds: float, num_classes: int = NUM_CLASSES
) -> DeviceRates:
    """Measures copies to one device and training steps of the recipe's micro batch on it."""
    size, batch = recipe.data.size_at(0), recipe.micro_batch

    def rate(precision: str) -> float:
        """Returns images/s; 0 where a step does not fit into the device's memory."""
        try:
            step = make_step(device, recipe, precision, batch, size, num_classes)
            return _step_rate(device, step, batch, seconds)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return 0.0

    if device.type == "cpu":
        few = make_step(device, recipe, "no", _FEW, size, num_classes)
        # A CPU that runs out of memory is not told so: the kernel kills the process.
        fits = batch / _FEW * activation_bytes(few) < available_memory()
        return DeviceRates("CPU", None, None, {"no": rate("no") if fits else 0.0}, batch, size)
    with torch.cuda.device(device):
        precisions = ["no", "fp16"] + (["bf16"] if torch.cuda.is_bf16_supported() else [])
        steps = {name: rate(name) for name in precisions}
        properties = torch.cuda.get_device_properties(device)
        copy_gb = _copy_rate(device, (batch, 3, size, size))
    return DeviceRates(properties.name, properties.total_memory, copy_gb, steps, batch, size)


def activation_bytes(step: Callable[[], None]) -> int:
    """Returns the bytes that a step keeps from its forward pass for its backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(base_of(tensor), nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(kept.values())


def _step_rate(device: torch.device, step: Callable[[], None], batch: int, seconds: float) -> float:
    """Returns images/s of training steps."""

    def timed() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    first = timed()  # with what is prepared once: algorithms, memory, optimizer state
    if device.type == "cpu" and first > _SLOW_STEP:
        return batch / first
    times: list[float] = []
    while len(times) < _LEAST_STEPS or sum(times) < seconds:
        times.append(timed())
    return batch / statistics.median(times)


def make_step(
    device: torch.device,
    recipe: Recipe,
    precision: str,
    batch: int,
    size: int,
    num_classes: int = NUM_CLASSES,
) -> Callable[[], None]:
    """Returns a training step on a batch that is on the device already; it waits for the device.

    It does what training does there: normalise, forward, loss, backward, update.
    """
    wnids = tuple(f"n{number:08d}" for number in range(num_classes))
    model: nn.Module = build_model(recipe.model, Classes(wnids, wnids))
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, recipe.optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    pictures = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, num_classes, (batch,), device=device)
    dtype = _DTYPES[precision]

    def loss() -> Tensor:
        with torch.autocast(device.type, dtype=dtype) if dtype else nullcontext():
            logits = logits_of(model, normalise(pictures, recipe.data.mean, recipe.data.std))
        return training_loss(logits.float(), labels, recipe)

    def step() -> None:
        scaler.scale(loss()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def _copy_rate(device: torch.device, shape: tuple[int, ...], rounds: int = 20) -> float:
    """Returns GB/s of copying uint8 batches from page-locked memory to a GPU."""
    batch = torch.empty(shape, dtype=torch.uint8).pin_memory()
    batch.to(device, non_blocking=True)
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(rounds):
        batch.to(device, non_blocking=True)
    torch.cuda.synchronize(device)
    return rounds * batch.numel() / (time.perf_counter() - began) / 1e9
