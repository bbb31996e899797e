"""What learns: model, optimizer and averages, and the one step that moves them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagenet_rn50.classes import Classes
from imagenet_rn50.files import read_json, write_json
from imagenet_rn50.loading.device import DeviceBatch
from imagenet_rn50.model import build_model, logits_of
from imagenet_rn50.runs.checkpoints import STATE
from imagenet_rn50.training import checkpoint
from imagenet_rn50.training.batch_norm import RunningStatistics
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
        bare: The model itself, for evaluation: not wrapped for ranks, not compiled.
        ema: Average of the weights, or None.
        plateau: Remembers how validation went.
        origin: Whose weights it began with, for the journal; empty where they were fresh.
    """

    def __init__(self, session: Session, classes: Classes) -> None:
        recipe, accelerator = session.recipe, session.accelerator
        self._session = session
        self._num_classes = len(classes)
        self._accumulation = recipe.accumulation(accelerator.num_processes)
        torch.manual_seed(recipe.seed)
        bare: nn.Module = build_model(recipe.model, classes)
        self.origin = begin_with(bare, session)
        bare.to(memory_format=torch.channels_last)
        self.bare = bare
        self._statistics = RunningStatistics(
            self.bare, self._accumulation, accelerator.num_processes
        )
        optimizer = build_optimizer(self.bare, recipe.optimizer)
        self._model, self.optimizer = accelerator.prepare(self.bare, optimizer)
        self.ema = Ema(self.bare, recipe.ema_decay) if recipe.ema_decay else None
        self.plateau = Plateau(recipe)

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
                loss = self._loss(batch, self._position(samples_seen, turn))
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

    def save(self, samples_seen: int, *, is_best: bool) -> None:
        """Saves a checkpoint; every rank calls it."""
        session = self._session
        checkpoint.save(
            session.accelerator,
            session.folder.checkpoints,
            samples_seen,
            is_best=is_best,
            add_files=self._add_files,
        )

    def restore(self) -> int:
        """Takes up the newest whole checkpoint, where there is one; every rank calls it.

        Returns:
            Its `samples_seen`, or 0.
        """
        session = self._session
        found = checkpoint.restore(session.accelerator, session.folder.checkpoints)
        if found is None:
            return 0
        if self.ema:
            self.ema.load(found.folder)
        self.plateau.load_state_dict(read_json(found.folder / STATE)["plateau"])
        return found.samples_seen

    def snapshot(self) -> dict[str, Any]:
        """Returns a copy of model and optimizer, for `put_back`."""
        return copy.deepcopy(
            {"model": self.bare.state_dict(), "optimizer": self.optimizer.state_dict()}
        )

    def put_back(self, before: dict[str, Any]) -> None:
        """Makes model and optimizer what they were when `before` was taken."""
        self.bare.load_state_dict(before["model"])
        self.optimizer.load_state_dict(before["optimizer"])

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
            soft = smooth_targets(targets, self._num_classes, recipe.label_smoothing)
            pictures, targets = mix(pictures, soft, recipe, position)
        return training_loss(logits_of(self._model, pictures), targets, recipe)

    def _add_files(self, folder: Path) -> None:
        """Writes into a checkpoint what Accelerate does not know of."""
        if self.ema:
            self.ema.save(folder)
        write_json(folder / STATE, {"plateau": self.plateau.state_dict()})
