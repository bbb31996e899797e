"""The two contenders of `benchmarks.train_step`, and what both of them are given."""

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
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional

from imagenet_rn50.classes import Classes
from imagenet_rn50.loading.device import DeviceBatch, on_device
from imagenet_rn50.loading.stages import Batch
from imagenet_rn50.loading.store import LocalShards
from imagenet_rn50.recipe import DataRecipe, Recipe
from imagenet_rn50.runs.folder import RunFolder
from imagenet_rn50.shards.manifest import TRAIN, Manifest
from imagenet_rn50.training.learner import Learner
from imagenet_rn50.training.meter import Meter
from imagenet_rn50.training.schedules import learning_rate
from imagenet_rn50.training.session import Session, make_accelerator

ROOT = Path(__file__).parents[1]
_NUM_CLASSES = 1000
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
_ENDLESS = 10**9  # samples that the loader may be asked for

Mode = Literal["eager", "compile"]
Layout = Literal["channels_last", "contiguous"]
Precision = Literal["fp32", "bf16", "fp16"]
Data = Literal["synthetic", "loader"]
Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    size: int
    mode: Mode
    layout: Layout
    precision: Precision
    data: Data

    def arrange(self, batches: Iterator[DeviceBatch]) -> Iterator[DeviceBatch]:
        """Yields the batches in the order of memory that is asked for."""
        for batch in batches:
            contiguous = self.layout == "contiguous"
            yield batch._replace(pictures=batch.pictures.contiguous()) if contiguous else batch


def make_session(case: Case, batch: int, workers: int, photos: Path, run: Path) -> Session:
    """Makes the session that training would have, for a launcher that asks for the case."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = case.precision.replace("fp32", "no")
    os.environ["ACCELERATE_DYNAMO_BACKEND"] = "INDUCTOR" if case.mode == "compile" else "NO"
    os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] = "False"
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = make_accelerator()
    recipe = Recipe(
        global_batch=batch,
        micro_batch=batch,
        data=DataRecipe(train_size=case.size, shuffle_window=2),
    )
    folder = _shards(photos)
    split = Manifest.load(folder).split(TRAIN)
    shards = LocalShards(folder)
    return Session(recipe, shards, split, split, RunFolder(run), accelerator, workers)


def _shards(photos: Path) -> Path:
    """Writes some hundred photos as shards, once; with restart markers where that is possible."""
    kind = "restarts" if shutil.which("jpegtran") else "shards"
    for words in (["photos", str(photos), "640"], [kind, str(photos)]):
        command = [sys.executable, "-m", "benchmarks.loader_data", *words]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return photos / kind


def _batches(case: Case, session: Session) -> Iterator[DeviceBatch]:
    """Yields batches as the session gives them to training, with fresh workers for each caller."""
    if case.data == "loader":
        return case.arrange(session.on_device(session.training_loader(0, _ENDLESS)))
    size, number = case.size, session.recipe.micro_batch
    pictures = torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8)
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, _NUM_CLASSES, (number,))
    device, data = session.accelerator.device, session.recipe.data
    if device.type == "cuda":
        pictures, labels = pictures.pin_memory(), labels.pin_memory()
    batch = Batch(pictures, labels, labels, labels >= 0)
    repeated = on_device(itertools.repeat(batch), device, data.mean, data.std)
    return case.arrange(repeated)


def ours(case: Case, session: Session) -> Step:
    """Returns our step: `Learner.step` at the rate that the loop would give it."""
    wnids = tuple(f"n{number:08d}" for number in range(_NUM_CLASSES))
    learner = Learner(session, Classes(wnids, wnids))
    if case.layout == "contiguous":
        learner.bare.to(memory_format=torch.contiguous_format)
    meter = Meter(session.accelerator.device, session.accelerator.num_processes)
    batches, positions = _batches(case, session), itertools.count(0, session.recipe.global_batch)

    def step() -> None:
        position = next(positions)
        rate = learning_rate(session.recipe, session.progress(position).epoch)
        learner.step(batches, rate, meter, samples_seen=position)

    return step


def plain(case: Case, session: Session) -> Step:
    """Returns the step of a plain loop, as torchvision's reference script has it."""
    device, dtype = session.accelerator.device, _DTYPES[case.precision]
    theirs: nn.Module = torchvision.models.resnet50()
    theirs.to(device, memory_format=_LAYOUTS[case.layout]).train()  # type: ignore[call-overload]
    model: Callable[[Tensor], Tensor]
    model = torch.compile(theirs) if case.mode == "compile" else theirs
    scaler = torch.amp.GradScaler(device.type) if case.precision == "fp16" else None
    fused = device.type == "cuda" and scaler is None
    optimizer = torch.optim.SGD(
        theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=fused
    )
    batches = _batches(case, session)

    def loss_of(batch: DeviceBatch) -> Tensor:
        with torch.autocast(device.type, dtype) if dtype else nullcontext():
            return functional.cross_entropy(
                model(batch.pictures), batch.labels, label_smoothing=0.1
            )

    def step() -> None:
        loss = loss_of(next(batches))
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step
