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
from imagenet_rn50.model import build_model, logits_of
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.training.losses import training_loss
from imagenet_rn50.training.optim import build_optimizer

_NUM_CLASSES = 1000
_CPU_BATCH = 8  # a CPU is measured to show that it works, not to be trained on for hours
_LEAST_STEPS = 2
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


def measure_devices(recipe: Recipe, seconds: float) -> list[DeviceRates]:
    """Measures every GPU alone, one after the other; the CPU where there is none.

    Args:
        recipe: Says what model, micro batch and size of pictures.
        seconds: How long each precision is measured, at least.
    """
    if not torch.cuda.is_available():
        return [measure_device(torch.device("cpu"), recipe, seconds)]
    devices = (torch.device("cuda", number) for number in range(torch.cuda.device_count()))
    return [measure_device(device, recipe, seconds) for device in devices]


def measure_device(device: torch.device, recipe: Recipe, seconds: float) -> DeviceRates:
    """Measures copies to one device and training steps on it."""
    size = recipe.data.size_at(0)
    if device.type == "cpu":
        batch = min(recipe.micro_batch, _CPU_BATCH)
        steps = {"no": _step_rate(device, recipe, "no", batch, size, seconds)}
        return DeviceRates("CPU", None, None, steps, batch, size)
    batch = recipe.micro_batch
    with torch.cuda.device(device):
        precisions = ["no", "fp16"] + (["bf16"] if torch.cuda.is_bf16_supported() else [])
        steps = {
            name: _step_rate(device, recipe, name, batch, size, seconds) for name in precisions
        }
        properties = torch.cuda.get_device_properties(device)
        copy_gb = _copy_rate(device, (batch, 3, size, size))
    return DeviceRates(properties.name, properties.total_memory, copy_gb, steps, batch, size)


def _step_rate(
    device: torch.device, recipe: Recipe, precision: str, batch: int, size: int, seconds: float
) -> float:
    """Returns images/s of training steps; 0 where they do not fit into the device's memory."""
    try:
        step = make_step(device, recipe, precision, batch, size)
        step()  # what is prepared once: algorithms, memory, optimizer state
        times: list[float] = []
        while len(times) < _LEAST_STEPS or sum(times) < seconds:
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return 0.0
    return batch / statistics.median(times)


def make_step(
    device: torch.device, recipe: Recipe, precision: str, batch: int, size: int
) -> Callable[[], None]:
    """Returns a training step on a batch that is on the device already; it waits for the device.

    It does what training does there: normalise, forward, loss, backward, update.
    """
    wnids = tuple(f"n{number:08d}" for number in range(_NUM_CLASSES))
    model: nn.Module = build_model(recipe.model, Classes(wnids, wnids))
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, recipe.optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    pictures = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, _NUM_CLASSES, (batch,), device=device)
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
