"""The training loop, read from top to bottom."""

from __future__ import annotations

import math
from pathlib import Path

from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from imagenet_rn50.classes import Classes
from imagenet_rn50.console import progress_bar, say
from imagenet_rn50.files import require_free_space
from imagenet_rn50.loading.loader import Loader
from imagenet_rn50.loading.stages import OnError
from imagenet_rn50.loading.store import ShardStore
from imagenet_rn50.recipe import Recipe, flatten
from imagenet_rn50.runs import metrics
from imagenet_rn50.runs.checkpoints import newest_checkpoint
from imagenet_rn50.runs.folder import RunFolder
from imagenet_rn50.runs.metrics import Journal
from imagenet_rn50.runs.report import bottleneck, draw_plots
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest
from imagenet_rn50.training.learner import Learner
from imagenet_rn50.training.meter import Meter
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.training.schedules import concerns, learning_rate
from imagenet_rn50.training.session import Session, environment
from imagenet_rn50.training.validation import evaluate

_STEPS_PER_LINE = 20  # of metrics.jsonl; reading the loss waits for the device, so not every step
_CHECKPOINTS_ON_DISK = 4  # two newest, the best, and the one being written
_BYTES_PER_PARAMETER = 8  # weight and momentum, float32


def open_session(
    recipe: Recipe,
    shards: ShardStore,
    run: Path,
    accelerator: Accelerator,
    num_workers: int,
    *,
    on_error: OnError = "stop",
    create: bool = True,
    init_from: str | None = None,
) -> tuple[Session, Learner]:
    """Makes sure that recipe, shards and run folder fit each other, and builds what learns.

    Nothing is written before all of it is known to fit.

    Args:
        recipe: Hyperparameters.
        shards: Where the shards stand.
        run: Run folder: new, or one of the same recipe and shards.
        accelerator: From `make_accelerator`.
        num_workers: Loader processes of each rank.
        on_error: What a damaged sample does: stop the run, or let another one substitute for it.
        create: Whether the run folder becomes this recipe's run.
        init_from: Whose weights a new run begins with; None for fresh ones.

    Raises:
        InputError: When they do not fit.
    """
    manifest, classes = Manifest.load(shards.folder), Classes.load(shards.folder)
    splits, folder = (manifest.split(TRAIN), manifest.split(VALIDATION)), RunFolder(run)
    session = Session(
        recipe, shards, *splits, folder, accelerator, num_workers, on_error, init_from
    )
    folder.check(recipe, shards.folder)
    learner = Learner(session, classes)
    if create and accelerator.is_main_process:
        require_free_space(run, _bytes_of_checkpoints(learner.bare), "checkpoints")
        folder.create(recipe, shards.folder, manifest.dataset, classes)
    accelerator.wait_for_everyone()
    return session, learner


def fit(session: Session, learner: Learner) -> None:
    """Trains until the recipe's epochs are done, going on where the run folder stands.

    Args:
        session: From `open_session`.
        learner: From `open_session`.

    Raises:
        RuntimeError: When the loss is no longer finite.
    """
    recipe, accelerator, run = session.recipe, session.accelerator, session.folder.path
    progress = session.progress(learner.restore())
    if progress.finished:
        accelerator.print(f"{run} is finished: {recipe.epochs} epochs. Nothing to train.")
        return
    for concern in concerns(recipe):
        accelerator.print(f"mind the schedule: {concern}")

    journal = Journal(run, progress.samples_seen) if accelerator.is_main_process else None
    if journal:
        place = progress.samples_seen, progress.epoch
        journal.write(metrics.START, *place, **environment(accelerator), **learner.origin)
    loader = session.training_loader(progress.samples_seen, progress.total_samples)
    batches = session.on_device(loader)
    hyperparameters = {key: str(value) for key, value in flatten(recipe.model_dump())}
    accelerator.init_trackers("imagenet_rn50", config=hyperparameters)
    meter = Meter(accelerator.device, accelerator.num_processes)
    with _bar(progress, enabled=accelerator.is_main_process) as bar:
        while not progress.finished:
            epoch_end = progress.next_epoch_end
            lr = learning_rate(recipe, progress.epoch, learner.plateau.num_cuts)
            learner.step(batches, lr, meter, samples_seen=progress.samples_seen)
            progress = progress.after_step()
            bar.update(recipe.global_batch)

            # Once in a while: read the loss. All ranks take part.
            if meter.num_steps == _STEPS_PER_LINE or progress.samples_seen == epoch_end:
                line = _read(meter, loader, session, progress)
                bar.set_postfix_str(_postfix(line, lr), refresh=False)
                accelerator.log(line | {"lr": lr}, step=progress.samples_seen)
                if journal:
                    place = progress.samples_seen, progress.epoch
                    journal.write(metrics.TRAIN, *place, lr=lr, **line)

            # At the end of each epoch: evaluate, tell, save. All ranks take part.
            if progress.samples_seen == epoch_end:
                is_best = evaluate(learner, session, progress, journal)
                learner.save(progress.samples_seen, is_best=is_best)
                meter.restart()
    loader.close()
    if journal:
        journal.close()
        draw_plots(run)
        say(bottleneck(run))
    accelerator.end_training()


def _read(meter: Meter, loader: Loader, session: Session, progress: Progress) -> dict[str, float]:
    """Returns what happened since the last reading; all ranks call it.

    Raises:
        RuntimeError: When the loss is no longer finite.
    """
    num_steps, line = meter.num_steps, meter.read(session.add_up)
    if substitutions := loader.rates().substitutions:
        line["substitutions"] = substitutions
    if not math.isfinite(line["loss"]):
        last = progress.samples_seen // progress.global_batch
        newest = newest_checkpoint(session.folder.checkpoints)
        raise RuntimeError(
            f"the loss became nan or inf within steps [{last - num_steps + 1}, {last}]; "
            f"the last good checkpoint is {newest.folder if newest else 'none'}"
        )
    return line


def _bar(progress: Progress, *, enabled: bool) -> tqdm:  # type: ignore[type-arg]
    """Makes the bar over the images of the whole run."""
    total, seen = progress.total_samples, progress.samples_seen
    return progress_bar(total=total, initial=seen, description="train", enabled=enabled)


def _postfix(line: dict[str, float], lr: float) -> str:
    """Returns what stands at the end of the bar."""
    text = f"loss {line['loss']:.3f}, lr {lr:.3g}, data wait {line['data_wait']:.0%}"
    return text + (f", {line['gpu_gib']:.1f} GiB" if "gpu_gib" in line else "")


def _bytes_of_checkpoints(model: nn.Module) -> int:
    """Returns the disk space that a run's checkpoints take, roughly."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return _CHECKPOINTS_ON_DISK * _BYTES_PER_PARAMETER * num_parameters
