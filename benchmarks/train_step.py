"""Images/s of a training step: transformers' ResNet-50 as we run it beside torchvision's.

    python -m benchmarks.train_step --size 224 --batch 16 --rounds 5

Both take the same uint8 batch and do the same work: normalise, forward, loss, backward, SGD step.
They take turns, so that a change in the machine's speed meets both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
import tyro
from torch import Tensor, nn
from torch.nn import functional

from imagenet_rn50.classes import Classes
from imagenet_rn50.loading.transforms import normalise
from imagenet_rn50.model import build_model, logits_of
from imagenet_rn50.recipe import DataRecipe, ModelRecipe, OptimizerRecipe
from imagenet_rn50.training.optim import build_optimizer

_NUM_CLASSES = 1000


@dataclass(frozen=True)
class Arguments:
    """Times training steps of both models in turn."""

    size: int = 224
    """Side of the pictures, px."""
    batch: int = 16
    """Images in a step."""
    rounds: int = 5
    """Counted steps of each model, after one that is not counted."""


def main() -> None:
    """Prints images/s of both, and the ratio of each round."""
    arguments = tyro.cli(Arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures = torch.randint(
        0, 256, (arguments.batch, 3, arguments.size, arguments.size), dtype=torch.uint8
    ).to(device)
    labels = torch.randint(0, _NUM_CLASSES, (arguments.batch,), device=device)

    wnids = tuple(f"n{number:08d}" for number in range(_NUM_CLASSES))
    ours: nn.Module = build_model(ModelRecipe(), Classes(wnids, wnids))
    theirs: nn.Module = torchvision.models.resnet50()
    steps = [
        _step(ours, lambda x: logits_of(ours, x), device),
        _step(theirs, theirs, device),
    ]
    seconds: list[list[float]] = [[], []]
    for turn in range(arguments.rounds + 1):
        for step, times in zip(steps, seconds, strict=True):
            began = time.perf_counter()
            step(pictures, labels)
            if turn:
                times.append(time.perf_counter() - began)

    ratios = [theirs / ours for ours, theirs in zip(*seconds, strict=True)]
    threads = torch.get_num_threads()
    print(f"{device}, {threads} threads, {arguments.batch} images of {arguments.size} px")
    for name, times in zip(("ours", "torchvision"), seconds, strict=True):
        print(f"{name:<12} {arguments.batch / statistics.median(times):8.1f} images/s (median)")
    print(
        f"ours / torchvision: {statistics.median(ratios):.3f} "
        f"(min {min(ratios):.3f}, max {max(ratios):.3f}, {len(ratios)} rounds)"
    )


def _step(
    model: nn.Module, forward: Callable[[Tensor], Tensor], device: torch.device
) -> Callable[[Tensor, Tensor], None]:
    """Returns a training step of a model that waits until it is done."""
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = build_optimizer(model, OptimizerRecipe())
    data = DataRecipe()

    def step(pictures: Tensor, labels: Tensor) -> None:
        logits = forward(normalise(pictures, data.mean, data.std))
        functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    main()
