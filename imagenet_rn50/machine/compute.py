"""How fast the devices are: copies from the host, and training steps in each precision."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imagenet_rn50.classes import Classes
from imagenet_rn50.loading.transforms import normalise
from imagenet_rn50.machine.facts import available_memory
from imagenet_rn50.model import build_model, logits_of
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.training.losses import training_loss
from imagenet_rn50.training.optim import build_optimizer

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
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
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
