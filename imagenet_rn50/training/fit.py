"""The training loop, read from top to bottom."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import imagenet_rn50
from imagenet_rn50.classes import Classes
from imagenet_rn50.console import progress_bar, say
from imagenet_rn50.evaluation.validate import validate
from imagenet_rn50.files import require_free_space
from imagenet_rn50.loading.loader import Batch, Share, make_loader
from imagenet_rn50.loading.order import TrainingOrder
from imagenet_rn50.loading.transforms import TrainTransform, normalise
from imagenet_rn50.model import build_model, logits_of
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.runs import metrics
from imagenet_rn50.runs.checkpoints import newest_checkpoint
from imagenet_rn50.runs.folder import RunFolder
from imagenet_rn50.runs.metrics import Journal
from imagenet_rn50.runs.report import draw_plots, write_logs
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest, Split
from imagenet_rn50.training import checkpoint
from imagenet_rn50.training.batch_norm import RunningStatistics
from imagenet_rn50.training.meter import Meter
from imagenet_rn50.training.optim import build_optimizer, set_learning_rate
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.training.schedules import learning_rate

_STEPS_PER_LINE = 20  # of metrics.jsonl; reading the loss waits for the device, so not every step
_CHECKPOINTS_ON_DISK = 4  # two newest, the best, and the one being written
_BYTES_PER_PARAMETER = 8  # weight and momentum, float32


def make_accelerator() -> Accelerator:
    """Makes the Accelerator that `fit` expects; devices and precision are the launcher's choice."""
    # BatchNorm buffers are kept equal by RunningStatistics, not by copying those of rank 0.
    return Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])


@dataclass(frozen=True)
class Session:
    """What stays the same while one process trains.

    Attributes:
        recipe: Hyperparameters.
        shards: Folder of the shards.
        train: Training split.
        validation: Validation split.
        folder: Run folder.
        accelerator: From `make_accelerator`.
        num_workers: Loader processes of each rank.
    """

    recipe: Recipe
    shards: Path
    train: Split
    validation: Split
    folder: RunFolder
    accelerator: Accelerator
    num_workers: int

    def add_up(self, tensor: Tensor) -> Tensor:
        """Returns the sum of a tensor over all ranks."""
        total: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return total


def fit(
    recipe: Recipe, shards: Path, run: Path, accelerator: Accelerator, num_workers: int
) -> None:
    """Trains until the recipe's epochs are done, going on where the run folder stands.

    Args:
        recipe: Hyperparameters.
        shards: Folder with the manifest and the shards.
        run: Run folder: new, or one of the same recipe and shards.
        accelerator: From `make_accelerator`.
        num_workers: Loader processes of each rank.

    Raises:
        InputError: When shards or run folder do not fit the recipe, before anything is written.
        RuntimeError: When the loss is no longer finite.
    """
    manifest, classes, folder = Manifest.load(shards), Classes.load(shards), RunFolder(run)
    train, validation = manifest.split(TRAIN), manifest.split(VALIDATION)
    session = Session(recipe, shards, train, validation, folder, accelerator, num_workers)
    accumulation = recipe.accumulation(accelerator.num_processes)
    folder.check(recipe, shards)

    torch.manual_seed(recipe.seed)
    bare: nn.Module = build_model(recipe.model, classes)
    bare.to(memory_format=torch.channels_last)
    if accelerator.is_main_process:
        require_free_space(run, _bytes_of_checkpoints(bare), "checkpoints")
        folder.create(recipe, shards, manifest.dataset, classes)
    statistics = RunningStatistics(bare, accumulation, accelerator.num_processes)
    model, optimizer = accelerator.prepare(bare, build_optimizer(bare, recipe.optimizer))
    samples_seen = checkpoint.restore(accelerator, folder.checkpoints)
    progress = Progress.of(recipe, train.num_samples, samples_seen)
    if progress.finished:
        accelerator.print(f"{run} is finished: {recipe.epochs} epochs. Nothing to train.")
        return

    journal = Journal(run, progress.samples_seen) if accelerator.is_main_process else None
    if journal:
        journal.write(metrics.START, samples_seen, progress.epoch, **_environment(accelerator))
    batches = _training_batches(session, progress)
    meter = Meter(accelerator.device, accelerator.num_processes)
    with _progress_bar(progress, accelerator) as bar:
        while not progress.finished:
            lr = learning_rate(recipe, progress.epoch)
            set_learning_rate(optimizer, lr)
            epoch_end = progress.next_epoch_end
            losses = []
            for turn in range(accumulation):
                with meter.waiting():
                    batch = next(batches)
                statistics.before_micro_batch(turn)
                # Gradients are exchanged once a step, with the last micro batch.
                is_last = turn == accumulation - 1
                with nullcontext() if is_last else accelerator.no_sync(model):
                    loss = _loss(model, batch, recipe, accelerator.device)
                    accelerator.backward(loss / accumulation)
                losses.append(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
            statistics.after_step(session.add_up)
            meter.after_step(losses, recipe.global_batch)
            progress = progress.after_step()
            bar.update(recipe.global_batch)

            # Once in a while: read the loss. All ranks take part.
            if meter.num_steps == _STEPS_PER_LINE or progress.samples_seen == epoch_end:
                line = _read_meter(meter, session, progress)
                bar.set_postfix_str(_postfix(line, lr), refresh=False)
                if journal:
                    journal.write(
                        metrics.TRAIN, progress.samples_seen, progress.epoch, lr=lr, **line
                    )

            # At the end of each epoch: evaluate, tell, save. All ranks take part.
            if progress.samples_seen == epoch_end:
                is_best = _evaluate(bare, session, progress, journal)
                checkpoint.save(
                    accelerator, folder.checkpoints, progress.samples_seen, is_best=is_best
                )
                meter.restart()
    if journal:
        journal.close()
        draw_plots(run)
    accelerator.end_training()


def _training_batches(session: Session, progress: Progress) -> Iterator[Batch]:
    """Returns this rank's micro batches, from the very next sample to the end of the run."""
    recipe, accelerator = session.recipe, session.accelerator
    share = Share(
        start=progress.samples_seen,
        stop=progress.total_samples,
        batch=recipe.micro_batch,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    order = TrainingOrder(
        session.train.shard_sizes, seed=recipe.seed, window=recipe.data.shuffle_window
    )
    loader = make_loader(
        session.shards,
        session.train,
        share,
        TrainTransform(recipe.data, recipe.seed),
        order=order,
        num_workers=session.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    return iter(loader)


def _loss(model: nn.Module, batch: Batch, recipe: Recipe, device: torch.device) -> Tensor:
    """Returns the mean loss of a micro batch, a scalar.

    It is computed outside the model, whose own loss knows no label smoothing.
    """
    pictures = batch.pictures.to(device, non_blocking=True)
    logits = logits_of(model, normalise(pictures, recipe.data.mean, recipe.data.std))
    labels = batch.labels.to(device, non_blocking=True)
    return functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)


def _read_meter(meter: Meter, session: Session, progress: Progress) -> dict[str, float]:
    """Returns what happened since the last reading; all ranks call it.

    Raises:
        RuntimeError: When the loss is no longer finite.
    """
    num_steps, line = meter.num_steps, meter.read(session.add_up)
    if not math.isfinite(line["loss"]):
        last = progress.samples_seen // progress.global_batch
        newest = newest_checkpoint(session.folder.checkpoints)
        raise RuntimeError(
            f"the loss became nan or inf within steps [{last - num_steps + 1}, {last}]; "
            f"the last good checkpoint is {newest.folder if newest else 'none'}"
        )
    return line


def _evaluate(
    bare: nn.Module, session: Session, progress: Progress, journal: Journal | None
) -> bool:
    """Evaluates the model, writes it down, and says whether it is the best of the run so far.

    All ranks call it; the one with the journal writes, and only its answer counts.
    """
    recipe, accelerator, run = session.recipe, session.accelerator, session.folder.path
    began = time.perf_counter()
    accuracy = validate(
        bare,
        session.shards,
        session.validation,
        recipe.data,
        device=accelerator.device,
        batch=recipe.micro_batch,
        num_workers=session.num_workers,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        reduce=session.add_up,
    )
    if journal is None:
        return False
    is_best = accuracy.top1 > journal.best_top1()
    seconds = time.perf_counter() - began
    journal.write(
        metrics.VALIDATION,
        progress.samples_seen,
        progress.epoch,
        **accuracy.as_dict(),
        seconds=seconds,
        is_best=is_best,
    )
    say(f"epoch {progress.epoch:.2f}: {accuracy}{', the best so far' * is_best}")
    write_logs(run)
    return is_best


def _progress_bar(progress: Progress, accelerator: Accelerator) -> tqdm[Any]:
    """Makes the bar over the images of the whole run."""
    return progress_bar(
        total=progress.total_samples,
        initial=progress.samples_seen,
        description="train",
        enabled=accelerator.is_main_process,
    )


def _postfix(line: dict[str, float], lr: float) -> str:
    """Returns what stands at the end of the bar."""
    return f"loss {line['loss']:.3f}, lr {lr:.3g}, data wait {line['data_wait']:.0%}"


def _environment(accelerator: Accelerator) -> dict[str, Any]:
    """Returns what a card or a bug report needs to know of this process, and no secret."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "world_size": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "device": f"{device.type} ({name})",
        "python": platform.python_version(),
        "versions": {
            "imagenet_rn50": imagenet_rn50.__version__,
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
            "transformers": transformers.__version__,
        },
    }


def _bytes_of_checkpoints(model: nn.Module) -> int:
    """Returns the disk space that a run's checkpoints take, roughly."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return _CHECKPOINTS_ON_DISK * _BYTES_PER_PARAMETER * num_parameters
