"""What learns: model, optimizer and averages, and the one step that moves them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from imagenet_rn50.classes import Classes
from imagenet_rn50.errors import InputError
from imagenet_rn50.loading.device import DeviceBatch
from imagenet_rn50.model import build_model, logits_of
from imagenet_rn50.runs.checkpoints import EMA_WEIGHTS, Checkpoint
from imagenet_rn50.training.batch_norm import RunningStatistics
from imagenet_rn50.training.checkpoint import (
    MODEL,
    OPTIMIZER,
    SCALER,
    State,
    read_plain,
    take_to_host,
)
from imagenet_rn50.training.ema import Ema
from imagenet_rn50.training.initial import begin_with
from imagenet_rn50.training.losses import smooth_targets, training_loss
from imagenet_rn50.training.meter import Meter
from imagenet_rn50.training.mixing import mix
from imagenet_rn50.training.optim import build_optimizer, set_learning_rate
from imagenet_rn50.training.schedules import Plateau
from imagenet_rn50.training.session import Session


class Learner:
    """All that changes in training, on its device and prepared for its ranks.

    Args:
        session: What stays the same.
        classes: Give the size of the head and its labels.

    Attributes:
        num_classes: Classes that the model tells apart.
        bare: The model itself, for evaluation: not wrapped for ranks, not compiled.
        ema: Average of the weights, or None.
        plateau: Remembers how validation went.
        origin: Whose weights it began with, for the journal; empty where they were fresh.
    """

    def __init__(self, session: Session, classes: Classes) -> None:
        recipe, accelerator = session.recipe, session.accelerator
        self._session = session
        self.num_classes = len(classes)
        self._accumulation = recipe.accumulation(accelerator.num_processes)
        torch.backends.cudnn.benchmark = True  # few sizes, each often: cuDNN tries its kernels once
        torch.manual_seed(recipe.seed)
        bare: nn.Module = build_model(recipe.model, classes)
        self.origin = begin_with(bare, session)
        bare.to(memory_format=torch.channels_last)
        self.bare = bare
        self._statistics = RunningStatistics(
            self.bare, self._accumulation, accelerator.num_processes
        )
        fused = accelerator.device.type == "cuda" and accelerator.scaler is None
        optimizer = build_optimizer(self.bare, recipe.optimizer, fused=fused)
        self._model, self.optimizer = accelerator.prepare(self.bare, optimizer)
        self.ema = Ema(self.bare, recipe.ema_decay) if recipe.ema_decay else None
        self.plateau = Plateau(recipe)

    @property
    def lr(self) -> float:
        """Learning rate of the last step."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def step(
        self, batches: Iterator[DeviceBatch], lr: float, meter: Meter, *, samples_seen: int
    ) -> None:
        """Takes one optimizer step over one global batch.

        Args:
            batches: This rank's micro batches.
            lr: Learning rate.
            meter: Told the losses, and how long data was waited for.
            samples_seen: Where the global batch begins in the training stream.
        """
        recipe, accelerator = self._session.recipe, self._session.accelerator
        set_learning_rate(self.optimizer, lr)
        losses = []
        for turn in range(self._accumulation):
            with meter.waiting():
                batch = next(batches)
            self._statistics.before_micro_batch(turn)
            # Gradients are exchanged once a step, with the last micro batch.
            is_last = turn == self._accumulation - 1
            with nullcontext() if is_last else accelerator.no_sync(self._model):
                position = self._position(samples_seen, turn)
                meter.saw(position, batch.host.indices)
                loss = self._loss(batch, position)
                accelerator.backward(loss / self._accumulation)
            losses.append(loss.detach())
        if recipe.optimizer.clip_norm is not None:
            accelerator.clip_grad_norm_(self._model.parameters(), recipe.optimizer.clip_norm)
        self.optimizer.step()
        skipped = bool(self.optimizer.step_was_skipped)  # fp16 overflowed; the scaler steps back
        self.optimizer.zero_grad()
        self._statistics.after_step(self._session.add_up)
        if self.ema and not skipped:
            self.ema.update(self.bare)
        meter.after_step(losses, recipe.global_batch, skipped=skipped)

    def capture(self) -> State:
        """Returns a copy of all that changes, in host memory, for a checkpoint's files."""
        state: State = {MODEL: self.bare.state_dict(), OPTIMIZER: self.optimizer.state_dict()}
        if (scaler := self._session.accelerator.scaler) is not None:
            state[SCALER] = scaler.state_dict()
        if self.ema:
            state[EMA_WEIGHTS] = self.ema.state()
        captured: State = take_to_host(state)
        return captured

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes up a checkpoint; every rank calls it.

        Args:
            checkpoint: Verified; every file is compared with its hash once more as it is read.

        Raises:
            InputError: When it is damaged, or is not of this model.
        """
        try:
            self.bare.load_state_dict(load(checkpoint.read(MODEL)))
        except RuntimeError as error:
            problem = f"{checkpoint.folder} holds another model's weights"
            raise InputError(problem, found=str(error)) from None
        self._restore_optimizer(read_plain(checkpoint.read(OPTIMIZER)))
        scaler = self._session.accelerator.scaler
        if scaler is not None and SCALER in checkpoint.files:  # bf16 and float32 save none
            scaler.load_state_dict(read_plain(checkpoint.read(SCALER)))
        if self.ema and EMA_WEIGHTS in checkpoint.files:
            self.ema.load(checkpoint.read(EMA_WEIGHTS))
        elif self.ema:
            self.ema.begin_with(self.bare)
        self.plateau.load_state_dict(checkpoint.facts["plateau"])

    def snapshot(self) -> dict[str, Any]:
        """Returns a copy of model, optimizer and average, for `put_back`."""
        return copy.deepcopy(
            {
                "model": self.bare.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema,
            }
        )

    def put_back(self, before: dict[str, Any]) -> None:
        """Makes model, optimizer and average what they were when `before` was taken."""
        self.bare.load_state_dict(before["model"])
        self.optimizer.load_state_dict(before["optimizer"])
        self.ema = before["ema"]

    def _position(self, samples_seen: int, turn: int) -> int:
        """Returns where this rank's micro batch of a turn begins in the training stream."""
        accelerator = self._session.accelerator
        number: int = turn * accelerator.num_processes + accelerator.process_index
        return samples_seen + number * self._session.recipe.micro_batch

    def _loss(self, batch: DeviceBatch, position: int) -> Tensor:
        """Returns the mean loss of a micro batch, a scalar."""
        recipe = self._session.recipe
        pictures, targets = batch.pictures, batch.labels
        if recipe.mixup_alpha or recipe.cutmix_alpha:
            soft = smooth_targets(targets, self.num_classes, recipe.label_smoothing)
            pictures, targets = mix(pictures, soft, recipe, position)
        return training_loss(logits_of(self._model, pictures), targets, recipe)

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        """Takes up an optimizer's momenta, but the recipe's own hyperparameters.

        torch would take up those of the checkpoint, and a change that was asked for were lost.
        """
        for saved, group in zip(state["param_groups"], self.optimizer.param_groups, strict=True):
            saved.update({key: value for key, value in group.items() if key != "params"})
        self.optimizer.load_state_dict(state)
