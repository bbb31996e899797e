"""What stays the same while one process trains, and what is asked of it."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor

import imagenet_rn50
from imagenet_rn50.errors import InputError
from imagenet_rn50.loading.device import DeviceBatch, on_device
from imagenet_rn50.loading.loader import Loader, Share, make_loader
from imagenet_rn50.loading.order import TrainingOrder
from imagenet_rn50.loading.reader import SampleError
from imagenet_rn50.loading.stages import OnError
from imagenet_rn50.loading.store import ShardStore
from imagenet_rn50.loading.transforms import TrainTransform
from imagenet_rn50.pretrained import Kind
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.runs.folder import RunFolder
from imagenet_rn50.shards.manifest import Split
from imagenet_rn50.training.persistence import DEFAULTS, Persistence
from imagenet_rn50.training.preemption import listens
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.training.start import Start


def make_accelerator(run: Path | None = None, trackers: tuple[str, ...] = ()) -> Accelerator:
    """Makes the Accelerator that `fit` expects; devices and precision are the launcher's choice.

    Args:
        run: Run folder, for trackers that write files.
        trackers: Names of Accelerate's trackers: tensorboard, wandb, trackio.

    Raises:
        InputError: When a tracker is not installed, for Accelerate would go on without it; or when
            Accelerate is told to accumulate gradients.
    """
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"the tracker {name} is not installed", fix=f"pip install {name}")
    # BatchNorm buffers are kept equal by RunningStatistics, not by copying those of rank 0.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    accelerator = Accelerator(
        kwargs_handlers=handlers,
        log_with=list(trackers) or None,
        project_dir=run / "tensorboard" if run else None,
    )
    if (num_steps := accelerator.gradient_accumulation_steps) != 1:
        raise InputError(
            f"Accelerate is told to accumulate gradients over {num_steps} steps, and would divide "
            "them by that",
            expected="1: the recipe's global_batch and micro_batch say how often to accumulate",
            fix="unset ACCELERATE_GRADIENT_ACCUMULATION_STEPS, or leave it out of the launcher's "
            "options",
        )
    return accelerator


@dataclass(frozen=True)
class Session:
    """What stays the same while one process trains.

    Attributes:
        recipe: Hyperparameters.
        shards: Where the shards stand.
        train: Training split.
        validation: Validation split.
        folder: Run folder.
        accelerator: From `make_accelerator`.
        num_workers: Loader processes of each rank.
        on_error: What a damaged sample does: stop the run, or let another one substitute for it.
        persistence: How the run is kept.
        start: Where this process begins or goes on.
        identity: Name of the data set and digest of its manifest.
        init_from: Whose weights a new run begins with, as `read_pretrained` takes it; None for
            fresh ones.
        init_weights: Averaged or raw weights, where a file holds both.
    """

    recipe: Recipe
    shards: ShardStore
    train: Split
    validation: Split
    folder: RunFolder
    accelerator: Accelerator
    num_workers: int
    on_error: OnError = "stop"
    persistence: Persistence = DEFAULTS
    start: Start = Start()
    identity: dict[str, str] = field(default_factory=dict)
    init_from: str | None = None
    init_weights: Kind | None = None

    @property
    def listens(self) -> bool:
        """Whether this rank listens for the notice that its machine will be taken away."""
        return bool(self.accelerator.is_local_main_process) and listens(self.persistence.spot)

    def add_up(self, tensor: Tensor) -> Tensor:
        """Returns the sum of a tensor over all ranks."""
        total: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return total

    def training_loader(self, start: int, stop: int) -> Loader:
        """Returns this rank's micro batches, from position `start` of the stream to `stop`."""
        share = Share(
            start=start,
            stop=stop,
            batch=self.recipe.micro_batch,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        order = TrainingOrder(
            self.train.shard_sizes, seed=self.recipe.seed, window=self.recipe.data.shuffle_window
        )
        return make_loader(
            self.shards,
            self.train,
            share,
            TrainTransform(self.recipe.data, self.recipe.seed),
            order=order,
            num_workers=self.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            on_error=self.on_error,
        )

    def on_device(self, loader: Loader) -> Iterator[DeviceBatch]:
        """Yields a training loader's batches on this rank's device, normalised.

        Raises:
            SampleError: When a sample is damaged, naming the option to train without it.
        """
        data = self.recipe.data
        try:
            yield from on_device(loader, self.accelerator.device, data.mean, data.std)
        except SampleError as error:
            raise SampleError(f"{error}\n{'':11} or go on with --on-error substitute") from None

    def progress(self, samples_seen: int) -> Progress:
        """Returns where the run stands after `samples_seen` images."""
        return Progress.of(self.recipe, self.train.num_samples, samples_seen)


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Returns what a card or a bug report needs to know of this process, and no secret."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "world_size": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "compile": accelerator.state.dynamo_plugin.backend.value.lower(),
        "device": f"{device.type} ({name})",
        "python": platform.python_version(),
        "versions": {
            "imagenet_rn50": imagenet_rn50.__version__,
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
            "transformers": transformers.__version__,
        },
    }
