"""The two contenders of `benchmarks.train_step` and their batches."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torchvision
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional

from imagenet_rn50.data.dataset import Batch
from imagenet_rn50.data.loader import DeviceBatch, on_device
from imagenet_rn50.learning_rate import learning_rate
from imagenet_rn50.recipe import DataRecipe, Recipe
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.training.accelerator import make_accelerator
from imagenet_rn50.training.config import CheckpointConfig
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
_ENDLESS = 10**9  # stop position of the loader, in samples

Mode = Literal["eager", "compile"]
Layout = Literal["channels_last", "contiguous"]
Precision = Literal["fp32", "bf16", "fp16"]
Data = Literal["synthetic", "loader"]
Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    size: int
    mode: Mode
    layout: Layout
    precision: Precision
    data: Data

    def arrange(self, batches: Iterator[DeviceBatch]) -> Iterator[DeviceBatch]:
        """Yield the batches in the memory format of the case."""
        for batch in batches:
            contiguous = self.layout == "contiguous"
            yield batch._replace(images=batch.images.contiguous()) if contiguous else batch


def accelerator_of(case: Case) -> Accelerator:
    """Return an Accelerator with the launcher environment of the case."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = case.precision.replace("fp32", "no")
    os.environ["ACCELERATE_DYNAMO_BACKEND"] = "INDUCTOR" if case.mode == "compile" else "NO"
    os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] = "False"
    AcceleratorState._reset_state(reset_partial_state=True)
    return make_accelerator()


def make_trainer(
    case: Case,
    batch: int,
    workers: int,
    shards: Path,
    run: Path,
    config: CheckpointConfig | None = None,
) -> Trainer:
    """Return a trainer of a case; without a `config` it creates no run directory."""
    accelerator = accelerator_of(case)
    data = DataRecipe(train_size=case.size)
    recipe = Recipe(global_batch=batch, micro_batch=batch, data=data)
    store, create = LocalShards(shards), config is not None
    return Trainer(recipe, store, run, accelerator, workers, config=config, create=create)


def pack_photos(data: Path, count: int) -> Path:
    """Pack photos once, a tenth of them as validation; return the shards.

    With restart markers, if jpegtran is installed.
    """
    shards = data / "packed"
    if not shards.is_dir():
        photos = data / "photos"
        markers = () if shutil.which("jpegtran") else ("--restart-blocks", "none")
        split = ("--holdout", "0.1", "--train-shards", "4", "--validation-shards", "2")
        source = ("--source", str(photos / "folder"), "--out", str(shards), "--dataset", "photos")
        for words in (
            ("-m", "benchmarks.loader_data", "photos", str(photos), str(count)),
            ("shard_imagenet.py", "pack", *source, *split, *markers),
        ):
            command = [sys.executable, *words]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return shards


def _batches(case: Case, trainer: Trainer) -> Iterator[DeviceBatch]:
    """Yield batches as in training, with new workers for each caller."""
    if case.data == "loader":
        return case.arrange(trainer.to_device(trainer.train_loader(0, _ENDLESS)))
    size, number = case.size, trainer.recipe.micro_batch
    images = torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, len(trainer.classes), (number,))
    device, data = trainer.accelerator.device, trainer.recipe.data
    if device.type == "cuda":
        images, labels = images.pin_memory(), labels.pin_memory()
    batch = Batch(images, labels, labels)
    repeated = on_device(itertools.repeat(batch), device, data.mean, data.std)
    return case.arrange(repeated)


def ours(case: Case, trainer: Trainer) -> Step:
    """Return our step: `Trainer.train_step` at the learning rate of the loop."""
    if case.layout == "contiguous":
        trainer.state.model.to(memory_format=torch.contiguous_format)
    batches, positions = _batches(case, trainer), itertools.count(0, trainer.recipe.global_batch)
    num_samples = trainer.train_split.num_samples

    def step() -> None:
        position = next(positions)
        progress = Progress.of(trainer.recipe, num_samples, position)
        rate = learning_rate(trainer.recipe, progress.epoch)
        trainer.train_step(batches, rate, position=position)

    return step


def plain(
    case: Case, trainer: Trainer, build: Callable[[], nn.Module] = torchvision.models.resnet50
) -> Step:
    """Return the step of a plain loop, as in torchvision's reference script.

    Args:
        case: What to run.
        trainer: Where batches, device and precision come from.
        build: Builds the model.
    """
    device, dtype = trainer.accelerator.device, _DTYPES[case.precision]
    resnet = build()
    resnet.to(device, memory_format=_LAYOUTS[case.layout]).train()  # type: ignore[call-overload]
    model: Callable[[Tensor], Tensor]
    model = torch.compile(resnet) if case.mode == "compile" else resnet
    scaler = torch.amp.GradScaler(device.type) if case.precision == "fp16" else None
    fused = device.type == "cuda" and scaler is None
    optimizer = torch.optim.SGD(
        resnet.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=fused
    )
    batches = _batches(case, trainer)

    def compute_loss(batch: DeviceBatch) -> Tensor:
        with torch.autocast(device.type, dtype) if dtype else nullcontext():
            return functional.cross_entropy(model(batch.images), batch.labels, label_smoothing=0.1)

    def step() -> None:
        loss = compute_loss(next(batches))
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step
