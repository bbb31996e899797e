"""`TrainState`: all that training changes, and all that a checkpoint holds.

A checkpoint is an Accelerate state: its files have Accelerate's names and formats, and
`accelerator.load_state(RUN/checkpoints/samples-...)` restores all of `TrainState`. What Accelerate
does not know of (EMA, plateau, progress) is loaded by a hook rather than by
`register_for_checkpointing`, which unpickles whatever it finds.

    model.safetensors    weights and BatchNorm statistics
    optimizer.bin        torch.save; read with weights_only
    scaler.pt            GradScaler
    ema.safetensors      averaged weights, if the recipe keeps them
    train_state.json     samples seen, sample hash, plateau, whether a validation is due

There is no random state: pixels and mixing are drawn from the position in the training stream.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from imagenet_rn50.learning_rate import Plateau
from imagenet_rn50.model import save_tensors
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.runs.checkpoint import EMA_WEIGHTS, WEIGHTS
from imagenet_rn50.training.optim import Ema
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.utils.files import read_json, write_json

OPTIMIZER, SCALER, PROGRESS = "optimizer.bin", "scaler.pt", "train_state.json"

_BYTES_PER_NUMBER = 4  # float32
_NUM_MOMENTS = {"sgd": 1, "adamw": 2, "lamb": 2}

StateDict: TypeAlias = dict[str, Any]
"""Content of each file of a checkpoint, by file name."""


@dataclass
class TrainState:
    """All that training changes, and all that a checkpoint restores.

    Attributes:
        model: The unwrapped model: neither DDP nor compiled.
        optimizer: As `Accelerator.prepare` returned it.
        scaler: Loss scaler of fp16, or None.
        ema: Averaged weights, or None.
        plateau: How validation went.
        progress: How far the run is.
        sample_hash: Hash of all samples seen so far, each at its position; in [0, 2^64).
        evaluation_due: Whether an epoch has ended that is not validated yet.
    """

    model: nn.Module
    optimizer: AcceleratedOptimizer
    scaler: GradScaler | None
    ema: Ema | None
    plateau: Plateau
    progress: Progress
    sample_hash: int = 0
    evaluation_due: bool = False

    @property
    def key(self) -> tuple[int, bool]:
        """What tells two states of a run apart."""
        return self.progress.samples_seen, self.evaluation_due

    def state_dict(self) -> StateDict:
        """Return the content of each file of a checkpoint, without copying tensors."""
        # load_state of an fp16 run insists on scaler.pt, so that every run saves one: a bf16 or
        # float32 run that of a scaler which has not started.
        scaler = self.scaler or GradScaler("cpu")
        state: StateDict = {
            WEIGHTS: self.model.state_dict(),
            OPTIMIZER: self.optimizer.state_dict(),
            SCALER: scaler.state_dict(),
            PROGRESS: {
                "samples_seen": self.progress.samples_seen,
                "sample_hash": f"{self.sample_hash:016x}",
                "evaluation_due": self.evaluation_due,
                "plateau": self.plateau.state_dict(),
            },
        }
        if self.ema:
            state[EMA_WEIGHTS] = self.ema.state_dict()
        return state

    def register_hooks(self, accelerator: Accelerator) -> None:
        """Let `accelerator.save_state` and `load_state` cover what Accelerate does not know of."""

        def save_hook(models: list[nn.Module], weights: list[Any], output_dir: str) -> None:
            state = self.state_dict()
            own = {name: state[name] for name in state.keys() - {WEIGHTS, OPTIMIZER}}
            if accelerator.is_main_process:
                write_state(Path(output_dir), own)

        def load_hook(models: list[nn.Module], input_dir: str) -> None:
            self._load_own(Path(input_dir))

        accelerator.register_save_state_pre_hook(save_hook)
        accelerator.register_load_state_pre_hook(load_hook)
        # The recipe's hyperparameters hold, not the checkpoint's: load_state_dict would discard a
        # change that was requested with --allow-change.
        self.optimizer.optimizer.register_load_state_dict_pre_hook(_keep_hyperparameters)

    def _load_own(self, folder: Path) -> None:
        """Load what Accelerate does not know of."""
        own = read_json(folder / PROGRESS)
        self.progress = replace(self.progress, samples_seen=own["samples_seen"])
        self.sample_hash = int(own["sample_hash"], 16)
        self.evaluation_due = own["evaluation_due"]
        self.plateau.load_state_dict(own["plateau"])
        if self.ema and (folder / EMA_WEIGHTS).is_file():
            self.ema.load(folder / EMA_WEIGHTS)
        elif self.ema:  # the averages start here: ema_decay is new
            self.ema.reset(load_file(folder / WEIGHTS))

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of model, optimizer and EMA, for `restore`."""
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema,
            }
        )

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Set model, optimizer and EMA to what they were when `snapshot` was taken."""
        self.model.load_state_dict(snapshot["model"])
        self.optimizer.load_state_dict(snapshot["optimizer"])
        self.ema = snapshot["ema"]


def copy_to_cpu(value: Any) -> Any:
    """Return a copy in host memory of all tensors in dicts, lists and tuples.

    From CUDA all copies are launched at once, into pinned memory, and waited for together.

    Args:
        value: A tensor, a container of tensors, or a plain value.
    """
    copied = _copied(value)
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    return copied


def write_state(folder: Path, state: StateDict) -> None:
    """Write the files of a checkpoint, or some of them, as `Accelerator.save_state` writes them.

    Args:
        folder: Where to.
        state: From `TrainState.state_dict`.

    Raises:
        ValueError: If a weight is not finite: nobody can resume from that.
    """
    for name, tensor in state.get(WEIGHTS, {}).items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is no longer finite")
    for name, content in state.items():
        path = folder / name
        if name == PROGRESS:
            write_json(path, content)
        elif name == EMA_WEIGHTS:
            tensors, metadata = content
            save_tensors(path, tensors, metadata)
        elif name == WEIGHTS:
            save_tensors(path, content)
        else:
            torch.save(content, path)


def num_bytes(state: StateDict) -> int:
    """Return how much memory the tensors of a state take."""
    return sum(tensor.nbytes for tensor in _tensors(state))


def checkpoint_bytes(model: nn.Module, recipe: Recipe) -> int:
    """Return roughly the disk space that a checkpoint takes: weights, moments and averages."""
    num_numbers = 1 + _NUM_MOMENTS[recipe.optimizer.name] + bool(recipe.ema_decay)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return _BYTES_PER_NUMBER * num_numbers * num_parameters


def _keep_hyperparameters(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state with the hyperparameters that the optimizer has now."""
    groups = [
        saved | {key: value for key, value in group.items() if key != "params"}
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return state | {"param_groups": groups}


def _copied(value: Any) -> Any:
    """Start to copy every tensor of nested containers."""
    if isinstance(value, Tensor):
        source = value.detach()
        copied = torch.empty_like(source, device="cpu", pin_memory=source.is_cuda)
        return copied.copy_(source, non_blocking=source.is_cuda)  # MPS copies are not waited for
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(entry) for entry in value)
    return value


def _tensors(value: Any) -> Iterable[Tensor]:
    """Yield every tensor of nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)
