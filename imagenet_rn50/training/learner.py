"""What learns: model, optimizer and averages, and the one step that moves them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from imagenet_rn50.classes import Classes
from imagenet_rn50.files import read_json, write_json
from imagenet_rn50.loading.loader import Batch
from imagenet_rn50.loading.transforms import normalise
from imagenet_rn50.model import build_model, logits_of
from imagenet_rn50.runs.checkpoints import STATE
from imagenet_rn50.training import checkpoint
from imagenet_rn50.training.batch_norm import RunningStatistics
from imagenet_rn50.training.ema import Ema
from imagenet_rn50.training.losses import training_loss
from imagenet_rn50.training.meter import Meter
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
    """

    def __init__(self, session: Session, classes: Classes) -> None:
        recipe, accelerator = session.recipe, session.accelerator
        self._session = session
        self._accumulation = recipe.accumulation(accelerator.num_processes)
        torch.manual_seed(recipe.seed)
        bare: nn.Module = build_model(recipe.model, classes)
        bare.to(memory_format=torch.channels_last)
        self.bare = bare
        self._statistics = RunningStatistics(
            self.bare, self._accumulation, accelerator.num_processes
        )
        optimizer = build_optimizer(self.bare, recipe.optimizer)
        self._model, self.optimizer = accelerator.prepare(self.bare, optimizer)
        self.ema = Ema(self.bare, recipe.ema_decay) if recipe.ema_decay else None
        self.plateau = Plateau(recipe)

    def step(self, batches: Iterator[Batch], lr: float, meter: Meter) -> None:
        """Takes one optimizer step over one global batch.

        Args:
            batches: This rank's micro batches.
            lr: Learning rate.
            meter: Told the losses, and how long data was waited for.
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
                loss = self._loss(batch)
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

    def _loss(self, batch: Batch) -> Tensor:
        """Returns the mean loss of a micro batch, a scalar."""
        recipe, device = self._session.recipe, self._session.accelerator.device
        pictures = batch.pictures.to(device, non_blocking=True)
        logits = logits_of(self._model, normalise(pictures, recipe.data.mean, recipe.data.std))
        return training_loss(logits, batch.labels.to(device, non_blocking=True), recipe)

    def _add_files(self, folder: Path) -> None:
        """Writes into a checkpoint what Accelerate does not know of."""
        if self.ema:
            self.ema.save(folder)
        write_json(folder / STATE, {"plateau": self.plateau.state_dict()})
