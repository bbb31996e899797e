"""The training loop, read from top to bottom."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from imagenet_rn50.classes import Classes
from imagenet_rn50.console import progress_bar
from imagenet_rn50.files import require_free_space
from imagenet_rn50.loading.loader import Loader
from imagenet_rn50.loading.stages import OnError
from imagenet_rn50.loading.store import ShardStore
from imagenet_rn50.pretrained import Kind
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.runs import metrics
from imagenet_rn50.runs.checkpoints import checkpoint_folders
from imagenet_rn50.runs.folder import RunFolder
from imagenet_rn50.runs.metrics import Journal
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest
from imagenet_rn50.training.checkpoint import bytes_of_checkpoint
from imagenet_rn50.training.cost import Cost
from imagenet_rn50.training.ending import (
    end,
    end_early,
    end_untrained,
    ended_in_order,
    nothing_to_train,
    require_finite,
)
from imagenet_rn50.training.interruption import Agreement, Interrupted, Interruption
from imagenet_rn50.training.learner import Learner
from imagenet_rn50.training.meter import Meter, in_short
from imagenet_rn50.training.persistence import DEFAULTS, Persistence
from imagenet_rn50.training.preemption import listening
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.training.saver import Saver
from imagenet_rn50.training.schedules import concerns, learning_rate
from imagenet_rn50.training.session import Session, environment
from imagenet_rn50.training.start import Asked, Start, find_start
from imagenet_rn50.training.sync import Sync, fetch_run
from imagenet_rn50.training.trackers import begin_tracking, track
from imagenet_rn50.training.validation import evaluate

_STEPS_PER_LINE = 20  # of metrics.jsonl; reading the loss waits for the device, so not every step
_CHECKPOINTS_BESIDES = 2  # the newest: the best, and the one being written


def open_session(
    recipe: Recipe,
    shards: ShardStore,
    run: Path,
    accelerator: Accelerator,
    num_workers: int,
    *,
    on_error: OnError = "stop",
    persistence: Persistence = DEFAULTS,
    create: bool = True,
    init_from: str | None = None,
    init_weights: Kind | None = None,
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
        persistence: How the run is kept, and where it goes on.
        create: Whether the run folder becomes this recipe's run, and its checkpoint is taken up.
        init_from: Whose weights a new run begins with; None for fresh ones.
        init_weights: Averaged or raw weights, where a file holds both.

    Raises:
        InputError: When they do not fit.
    """
    manifest, classes = Manifest.load(shards.folder), Classes.load(shards.folder)
    splits, folder = (manifest.split(TRAIN), manifest.split(VALIDATION)), RunFolder(run)
    persistence.check()
    if create:
        fetch_run(accelerator, folder, recipe, shards.folder, persistence)
    folder.check(recipe, shards.folder, persistence.allow_change)
    identity = {"dataset": manifest.dataset, "digest": Manifest.digest_of(shards.folder)}
    start = Start()
    if create:
        asked = Asked(recipe, identity, splits[0].num_samples, accelerator.mixed_precision)
        start = find_start(accelerator, folder.checkpoints, persistence, asked)
    session = Session(
        *(recipe, shards, *splits, folder, accelerator, num_workers, on_error),
        persistence=persistence,
        start=start,
        identity=identity,
        init_from=init_from,
        init_weights=init_weights,
    )
    learner = Learner(session, classes)
    if start.checkpoint:
        learner.restore(start.checkpoint)
    if create and accelerator.is_main_process:
        num_there = len(checkpoint_folders(folder.checkpoints))
        num_to_come = max(persistence.keep_last + _CHECKPOINTS_BESIDES - num_there, 1)
        num_bytes = bytes_of_checkpoint(learner.bare, recipe)
        require_free_space(run, num_to_come * num_bytes, "checkpoints")
        folder.create(recipe, shards.folder, manifest.dataset, classes)
    accelerator.wait_for_everyone()
    return session, learner


def fit(session: Session, learner: Learner) -> None:
    """Trains until the recipe's epochs are done, or until it is told to save and end.

    Args:
        session: From `open_session`.
        learner: From `open_session`.

    Raises:
        InputError: When the loss is no longer finite, or a sample is damaged.
        RuntimeError: When the last checkpoint is not saved.
        SystemExit: With code `EXIT_INTERRUPTED` when it was told to end, 0 when it was to stop at
            this step; after saving.
    """
    recipe, accelerator = session.recipe, session.accelerator
    start, plan, is_main = session.start, session.persistence, accelerator.is_main_process
    progress, evaluation_due = session.progress(start.samples_seen), start.evaluation_due
    sync = Sync(session.folder, plan, enabled=is_main)
    if reason := nothing_to_train(session, progress):
        end_untrained(session, sync, reason)
        return

    journal = _begin(session, learner, progress)
    loader = session.training_loader(progress.samples_seen, progress.total_samples)
    batches = session.on_device(loader)
    meter = Meter(accelerator.device, accelerator.num_processes, start.samples_hash)
    with (
        ended_in_order(session, journal),
        Interruption(talks=is_main) as interruption,
        listening(interruption.request, enabled=session.listens),
        closing(Agreement(accelerator.num_processes)) as agreement,
        closing(Saver(session, learner, journal, sync.bring)) as saver,
        closing(loader),
        _bar(progress, enabled=is_main) as bar,
    ):

        def heed() -> bool:
            """Says whether it is time to save. All ranks call it, and all end where any must."""
            wishes = agreement.exchange(stop=interruption.is_requested, save=saver.is_time())
            if wishes.stop:
                raise Interrupted
            return wishes.save

        try:
            while evaluation_due or not progress.finished:
                # At the end of each epoch, even of an earlier process: evaluate, tell, save.
                if evaluation_due:
                    score = evaluate(learner, session, progress, journal, heed)
                    evaluation_due = False
                    saver.save(progress, meter.samples_hash, score=score)
                    meter.restart()
                    continue

                lr = learning_rate(recipe, progress.epoch, learner.plateau.num_cuts)
                learner.step(batches, lr, meter, samples_seen=progress.samples_seen)
                evaluation_due = progress.next_epoch_end == progress.after_step().samples_seen
                progress = progress.after_step()
                bar.update(recipe.global_batch)
                is_time = heed() or plan.saves_after(progress.step)
                if progress.step == plan.stop_at_step:
                    raise Interrupted

                # Once in a while: read the loss, and save.
                if meter.num_steps == _STEPS_PER_LINE or evaluation_due or is_time:
                    _tell(meter, loader, learner, session, progress, bar, journal)
                    saver.report()
                if is_time and not evaluation_due:
                    saver.save(progress, meter.samples_hash)
        except Interrupted:
            _tell(meter, loader, learner, session, progress, bar, journal)
            saver.save(progress, meter.samples_hash, evaluation_due=evaluation_due)
            end_early(session, progress, interruption, saver, journal, sync)
        is_saved = saver.finish()
    end(session, journal, sync, is_saved=is_saved)


def _begin(session: Session, learner: Learner, progress: Progress) -> Journal | None:
    """Opens the trackers and, on the one rank that writes, the journal; all ranks call it."""
    recipe, accelerator, start = session.recipe, session.accelerator, session.start
    for concern in concerns(recipe):
        accelerator.print(f"mind the schedule: {concern}")
    begin_tracking(session)
    if not accelerator.is_main_process:
        return None
    place = progress.samples_seen, progress.epoch
    cost = Cost(session.folder, session.persistence.price_per_hour, progress)
    journal = Journal(
        session.folder.path, place[0], evaluation_due=start.evaluation_due, cost=cost.figures
    )
    journal.write(
        metrics.START, *place, **environment(accelerator), **start.as_dict(), **learner.origin
    )
    return journal


def _tell(
    meter: Meter,
    loader: Loader,
    learner: Learner,
    session: Session,
    progress: Progress,
    bar: tqdm,  # type: ignore[type-arg]
    journal: Journal | None,
) -> None:
    """Reads what happened since the last time and writes it down; all ranks call it."""
    if not meter.num_steps:
        return
    line, lr = _read(meter, loader, session, progress), learner.lr
    bar.set_postfix_str(in_short(line, lr), refresh=False)
    numbers = {key: value for key, value in line.items() if not isinstance(value, str)}
    track(session.accelerator, numbers | {"lr": lr}, progress.samples_seen)
    if journal:
        journal.write(metrics.TRAIN, progress.samples_seen, progress.epoch, lr=lr, **line)


def _read(meter: Meter, loader: Loader, session: Session, progress: Progress) -> dict[str, Any]:
    """Returns what happened since the last reading; all ranks call it.

    Raises:
        InputError: When the loss is no longer finite.
    """
    num_steps, line = meter.num_steps, meter.read(session.add_up)
    if substitutions := loader.rates().substitutions:
        line["substitutions"] = substitutions
    last = progress.samples_seen // progress.global_batch
    require_finite(line["loss"], session, f"within steps [{last - num_steps + 1}, {last}]")
    return line


def _bar(progress: Progress, *, enabled: bool) -> tqdm:  # type: ignore[type-arg]
    """Makes the bar over the images of the whole run."""
    total, seen = progress.total_samples, progress.samples_seen
    return progress_bar(total=total, initial=seen, description="train", enabled=enabled)
