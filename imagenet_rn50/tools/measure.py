"""Measure what limits training on this machine: volume, loader, devices, all-reduce.

- Volume: the page cache drops the shards first. They are read front to back, as training reads
  them, and then sample by sample in random order.
- Loader: the loader of training (data/loader.py) reads a few shards that are in memory, so that the
  volume does not count.
- Devices: training steps in each precision, and copies from the host.
- All-reduce: the sum of the gradients over all GPUs.

doctor.py calls these and interprets the rates.
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
from imagenet_rn50.peaks import peak_tflops, utilisation
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.shards.imagenet1k import NUM_CLASSES
from imagenet_rn50.shards.manifest import Split
from imagenet_rn50.shards.store import ShardStore
from imagenet_rn50.tools.system_info import available_memory
from imagenet_rn50.training.losses import mix, smooth_targets, training_loss
from imagenet_rn50.training.optim import Ema, build_optimizer
from imagenet_rn50.utilisation import training_flops
from imagenet_rn50.utils.private_apis import base_of

_BUFFER_BYTES = 8 << 20
_ENOUGH_BYTES = 64 << 20  # a read of less does not tell much about a volume
_CAN_DROP_CACHE = hasattr(os, "posix_fadvise")  # not on macOS

_LOADER_BATCH = 64  # at most, so that a slow machine finishes several
_EPOCHS = 10**6  # of the few shards; more than can be read in the time
MAX_BYTES = 2 * 10**9  # of shards in memory; half a minute of reading from a slow volume
_MAX_MEMORY_FRACTION = 0.5  # of the available memory; the loader needs some, too

_SMALL_BATCH = 2  # BatchNorm needs two images
_MIN_STEPS = 2
_SLOW_STEP = 10.0  # s; one step of this length is enough, for what is prepared once is small
_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_ALL_REDUCE_ROUNDS = 10


@dataclass(frozen=True)
class DiskRates:
    """Speed of reading shards from their volume.

    Attributes:
        sequential: MiB/s of one reader, front to back.
        random: MiB/s of one reader, sample by sample in random order.
        num_bytes: Bytes read front to back.
    """

    sequential: float
    random: float
    num_bytes: int

    @property
    def is_enough(self) -> bool:
        """Whether the rates are reliable: enough was read, and not from memory."""
        return _CAN_DROP_CACHE and self.num_bytes >= _ENOUGH_BYTES


def measure_disk(store: ShardStore, split: Split, seconds: float) -> DiskRates:
    """Measure reading shards that are not in memory.

    Args:
        store: Where the shards are; remote ones are downloaded first.
        split: The split to read.
        seconds: Longest time of each of the two measurements.
    """
    paths = [store.fetch(shard) for shard in split.shards]
    for path in paths:
        _drop_from_cache(path)
    num_bytes, sequential = _read_all(_front_to_back(paths), seconds)
    for path in paths:
        _drop_from_cache(path)
    _, random = _read_all(_at_random(paths, split), seconds)
    return DiskRates(sequential, random, num_bytes)


def read_whole(paths: list[Path]) -> None:
    """Read files into the page cache, as far as there is room."""
    for _ in _front_to_back(paths):
        pass


def _read_all(sizes: Iterator[int], seconds: float) -> tuple[int, float]:
    """Read until the end or until the time is up; return the bytes, and MiB/s."""
    began, num_bytes = time.perf_counter(), 0
    for size in sizes:
        num_bytes += size
        if time.perf_counter() - began > seconds:
            break
    return num_bytes, num_bytes / (time.perf_counter() - began) / 2**20


def _front_to_back(paths: list[Path]) -> Iterator[int]:
    """Read whole files; yield the bytes of each read."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                yield size


def _at_random(paths: list[Path], split: Split) -> Iterator[int]:
    """Read each sample once, in random order; yield its bytes."""
    descriptors: dict[int, int] = {}
    try:
        for index in np.random.default_rng(0).permutation(split.num_samples).tolist():
            shard = split.shard_of(index)
            if shard not in descriptors:
                descriptors[shard] = os.open(paths[shard], os.O_RDONLY | os.O_CLOEXEC)
                if _CAN_DROP_CACHE:
                    os.posix_fadvise(descriptors[shard], 0, 0, os.POSIX_FADV_RANDOM)
            length, offset = int(split.lengths[index]), int(split.offsets[index])
            yield len(os.pread(descriptors[shard], length, offset))
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _drop_from_cache(path: Path) -> None:
    """Drop a file from the page cache, after its pages are written to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if _CAN_DROP_CACHE:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True)
class DecodingRates:
    """Speed of the loader: decoding and augmentation.

    Attributes:
        one_worker: images/s of one worker.
        all_workers: images/s of all workers together.
        num_workers: The number of all workers.
        size: Side of the images, px.
    """

    one_worker: float
    all_workers: float
    num_workers: int
    size: int


def measure_decoding(
    store: ShardStore, split: Split, recipe: Recipe, num_workers: int, seconds: float
) -> DecodingRates:
    """Measure the loader with one worker and with all, on shards that are in memory.

    Args:
        store: Where the shards are.
        split: The training split.
        recipe: The recipe whose crops and augmentation are applied.
        num_workers: Loader workers of all ranks together.
        seconds: Time of each of the two measurements.
    """
    few = first_shards(split, min(MAX_BYTES, _MAX_MEMORY_FRACTION * available_memory()))
    read_whole([store.fetch(shard) for shard in few.shards])
    size = recipe.data.size_at(0)
    # An epoch over a few shards is short, so crops that grow over epochs are fixed.
    still = {"train_size": size, "final_size": None, "growth": None}
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=still)})
    one = _images_per_second(store, few, recipe, 1, seconds)
    together = _images_per_second(store, few, recipe, num_workers, seconds)
    return DecodingRates(one, together, num_workers, size)


def first_shards(split: Split, num_bytes: float) -> Split:
    """Return the first shards of a split that have at most `num_bytes`, and at least one."""
    ends = np.cumsum([shard.num_bytes for shard in split.shards])
    num_shards = max(int(np.searchsorted(ends, num_bytes, side="right")), 1)
    return split.select(np.arange(split.shard_starts[num_shards]))


def _images_per_second(
    store: ShardStore, split: Split, recipe: Recipe, num_workers: int, seconds: float
) -> float:
    """Return the images/s of a new loader."""
    batch = min(_LOADER_BATCH, recipe.micro_batch)
    loader = build_loader(
        store,
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
    """Return the images/s of a loader, without the batches that were prefetched before."""
    batches = iter(loader)
    for _ in range(2 * num_workers + 1):
        next(batches)
    loader.stats()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(batches)
    return loader.stats().images_per_s


@dataclass(frozen=True)
class DeviceRates:
    """Speed of one device.

    Attributes:
        name: Name of the device.
        memory_bytes: Its memory; None for a CPU.
        copy_gb: GB/s of copying batches from pinned memory; None for a CPU.
        steps: images/s of training steps by precision (no, bf16, fp16); 0 if the micro batch does
            not fit into memory.
        batch: Images in a step.
        size: Side of the images, px.
        flops_per_image: FLOPs of the model for one image of that size, forward and backward; None
            if they were not counted.
    """

    name: str
    memory_bytes: int | None
    copy_gb: float | None
    steps: dict[str, float]
    batch: int
    size: int
    flops_per_image: int | None = None

    def utilisation(self, precision: str) -> dict[str, float]:
        """Return TFLOP/s and MFU of the steps in a precision, as far as they are known."""
        if self.flops_per_image is None:
            return {}
        peak = peak_tflops(self.name, precision)
        return utilisation(self.flops_per_image, self.steps[precision], peak)


def measure_devices(
    recipe: Recipe, seconds: float, num_classes: int = NUM_CLASSES
) -> list[DeviceRates]:
    """Measure each GPU alone, one after the other, or the CPU if there is no GPU.

    Args:
        recipe: The recipe: its model, micro batch and image size.
        seconds: Least time of each precision.
        num_classes: Classes of the model.
    """
    if not torch.cuda.is_available():
        return [measure_device(torch.device("cpu"), recipe, seconds, num_classes)]
    devices = (torch.device("cuda", number) for number in range(torch.cuda.device_count()))
    return [measure_device(device, recipe, seconds, num_classes) for device in devices]


def measure_device(
    device: torch.device, recipe: Recipe, seconds: float, num_classes: int = NUM_CLASSES
) -> DeviceRates:
    """Measure training steps of the recipe's micro batch on one device, and copies to it."""
    size, batch = recipe.data.size_at(0), recipe.micro_batch
    flops = training_flops(recipe.model, size, num_classes)

    def rate(precision: str) -> float:
        try:
            step = make_step(device, recipe, precision, batch, size, num_classes)
            return _step_rate(device, step, batch, seconds)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return 0.0

    if device.type == "cpu":
        few = make_step(device, recipe, "no", _SMALL_BATCH, size, num_classes)
        # Out of memory on a CPU is no exception: the kernel kills the process.
        fits = batch / _SMALL_BATCH * activation_bytes(few) < available_memory()
        steps = {"no": rate("no") if fits else 0.0}
        return DeviceRates("CPU", None, None, steps, batch, size, flops)
    torch.backends.cudnn.benchmark = True  # as in training
    with torch.cuda.device(device):
        precisions = ["no", "fp16"] + (["bf16"] if torch.cuda.is_bf16_supported() else [])
        steps = {name: rate(name) for name in precisions}
        properties = torch.cuda.get_device_properties(device)
        copy_gb = _copy_rate(device, (batch, 3, size, size))
    name, memory = properties.name, properties.total_memory
    return DeviceRates(name, memory, copy_gb, steps, batch, size, flops)


def activation_bytes(step: Callable[[], None]) -> int:
    """Return the bytes that a step saves in its forward pass for its backward pass."""
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

    def timed() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    first = timed()  # includes what is prepared once: algorithms, memory, optimizer state
    if device.type == "cpu" and first > _SLOW_STEP:
        return batch / first
    times: list[float] = []
    while len(times) < _MIN_STEPS or sum(times) < seconds:
        times.append(timed())
    return batch / statistics.median(times)


def make_step(
    device: torch.device,
    recipe: Recipe,
    precision: str,
    batch: int,
    size: int,
    num_classes: int = NUM_CLASSES,
    *,
    accumulation: int = 1,
    compiled: bool = False,
) -> Callable[[], None]:
    """Return a training step on a batch on the device; the step waits for the device.

    It does what training does: normalise, mix, forward, loss, backward, clip, update, average.

    Args:
        device: The device.
        recipe: Hyperparameters.
        precision: no, bf16 or fp16.
        batch: Images in a micro batch.
        size: Side of the images, px.
        num_classes: Classes of the model.
        accumulation: Micro batches of a step.
        compiled: Whether the model is compiled with torch.compile.
    """
    wnids = tuple(f"n{number:08d}" for number in range(num_classes))
    model: nn.Module = build_model(recipe.model, Classes(wnids, wnids))
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    is_cuda = device.type == "cuda"
    optimizer = build_optimizer(model, recipe.optimizer, fused=is_cuda and precision != "fp16")
    # A low scale: a step that is skipped for overflow would be cheaper, and allocate less.
    scaler = torch.amp.GradScaler(device.type, 1024.0, enabled=precision == "fp16")
    ema = Ema(model, recipe.ema_decay) if recipe.ema_decay else None
    if compiled:
        model.compile()
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, num_classes, (batch,), device=device)
    dtype = _DTYPES[precision]

    def loss() -> Tensor:
        inputs, targets = normalise(images, recipe.data.mean, recipe.data.std), labels
        if recipe.mixup_alpha or recipe.cutmix_alpha:
            soft = smooth_targets(labels, num_classes, recipe.label_smoothing)
            inputs, targets = mix(inputs, soft, recipe, position=0)
        with torch.autocast(device.type, dtype=dtype) if dtype else nullcontext():
            logits = logits_of(model, inputs)
        return training_loss(logits.float(), targets, recipe)

    def step() -> None:
        for _ in range(accumulation):
            scaler.scale(loss() / accumulation).backward()
        if recipe.optimizer.clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if ema:
            ema.update(model)
        if is_cuda:
            torch.cuda.synchronize(device)

    return step


def _copy_rate(device: torch.device, shape: tuple[int, ...], rounds: int = 20) -> float:
    """Return the GB/s of copying uint8 batches from pinned memory to a GPU."""
    batch = torch.empty(shape, dtype=torch.uint8).pin_memory()
    batch.to(device, non_blocking=True)
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(rounds):
        batch.to(device, non_blocking=True)
    torch.cuda.synchronize(device)
    return rounds * batch.numel() / (time.perf_counter() - began) / 1e9


def measure_all_reduce(world_size: int, *, backend: str = "nccl", num_floats: int) -> float:
    """Measure an all-reduce over processes of this machine, one per device.

    Args:
        world_size: Number of processes, at least 2.
        backend: nccl for GPUs, gloo for the CPU.
        num_floats: Elements of the float32 tensor, such as the parameters of a model.

    Returns:
        Bus bandwidth in GB/s: 2 (n - 1) / n x bytes / seconds, which does not depend on n
        (NVIDIA's nccl-tests, PERFORMANCE.md).
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, backend, num_floats, Path(folder))
        spawn(_run_rank, arguments, nprocs=world_size)
        seconds = float((Path(folder) / "seconds").read_text(encoding="utf-8"))
    return 2 * (world_size - 1) / world_size * 4 * num_floats / seconds / 1e9


def _run_rank(rank: int, world_size: int, backend: str, num_floats: int, folder: Path) -> None:
    """Run one of the processes; rank 0 writes the seconds of an all-reduce."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    store = f"file://{folder.absolute() / 'store'}"
    distributed.init_process_group(backend, store, rank=rank, world_size=world_size)
    gradients = torch.ones(num_floats, device=device)
    distributed.all_reduce(gradients)  # the first one opens the connections
    assert gradients[0].item() == world_size
    began = time.perf_counter()
    for _ in range(_ALL_REDUCE_ROUNDS):
        distributed.all_reduce(gradients)
    if backend == "nccl":
        torch.cuda.synchronize(device)
    if rank == 0:
        seconds = (time.perf_counter() - began) / _ALL_REDUCE_ROUNDS
        (folder / "seconds").write_text(str(seconds), encoding="utf-8")
    distributed.destroy_process_group()
