"""How a process of a run ends: with nothing to do, at the end of the run, or before it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from imagenet_rn50.console import say
from imagenet_rn50.errors import InputError
from imagenet_rn50.processes import typed_command
from imagenet_rn50.runs import metrics
from imagenet_rn50.runs.checkpoints import newest_checkpoint
from imagenet_rn50.runs.metrics import Journal
from imagenet_rn50.runs.report import bottleneck, draw_plots
from imagenet_rn50.training.interruption import EXIT_INTERRUPTED, Interruption
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.training.saver import Saver
from imagenet_rn50.training.session import Session
from imagenet_rn50.training.sync import Sync
from imagenet_rn50.training.trackers import end_tracking

_STOP_AT_STEP = "--stop-at-step"


def nothing_to_train(session: Session, progress: Progress) -> str | None:
    """Says why there is nothing to train, or returns None."""
    run, stop = session.folder.path, session.persistence.stop_at_step
    if progress.finished and not session.start.evaluation_due:
        return f"{run} is finished: {session.recipe.epochs} epochs. Nothing to train."
    if stop is not None and progress.step >= stop:
        command = typed_command(without=_STOP_AT_STEP)
        return (
            f"{run} stands at step {progress.step}, and {_STOP_AT_STEP} is {stop}. "
            f"Nothing to train. To go on:\n  {command}"
        )
    return None


def end_untrained(session: Session, sync: Sync, reason: str) -> None:
    """Leaves a run as it is, but for what an end that was cut off did not come to."""
    session.accelerator.print(reason)
    run = session.folder.path
    is_to_draw = (run / metrics.FILE_NAME).is_file() and not (run / "plots").is_dir()
    if session.accelerator.is_main_process and is_to_draw:
        draw_plots(run)
    sync.finish()


def require_finite(loss: float, session: Session, place: str) -> None:
    """Stops training whose loss is lost; all ranks call it with the same loss.

    Raises:
        InputError: When it is nan or inf; with the last good checkpoint, and how to go on.
    """
    if math.isfinite(loss):
        return
    newest = newest_checkpoint(session.folder.checkpoints)
    raise InputError(
        f"the loss became nan or inf {place}; "
        f"the last good checkpoint is {newest.folder if newest else 'none'}",
        fix=f"{'go on from there' if newest else 'begin again'} with a lower rate: "
        f"--optimizer.lr {session.recipe.optimizer.lr / 2:g} --allow-change optimizer.lr",
    )


@contextmanager
def ended_in_order(session: Session, journal: Journal | None) -> Iterator[None]:
    """Closes the journal and draws what it says, when the body fails: one wants to see why."""
    try:
        yield
    except Exception:
        if journal:
            journal.close()
            with suppress(Exception):  # what failed before is what shall be told
                draw_plots(session.folder.path)
        raise


def end(session: Session, journal: Journal | None, sync: Sync, *, is_saved: bool) -> None:
    """Draws what a finished run is looked at by; all ranks call it.

    Raises:
        RuntimeError: When the last checkpoint is not saved.
    """
    if journal:
        journal.close()
        with journal.tolerating("plots"):
            draw_plots(session.folder.path)
    if not is_saved:
        stands = newest_checkpoint(session.folder.checkpoints)
        before = "the one before it stands" if stands else "there is none before it"
        raise RuntimeError(f"the last checkpoint could not be saved; {before}")
    if journal:
        sync.finish()
        say(bottleneck(session.folder.path))
    session.accelerator.wait_for_everyone()
    end_tracking(session.accelerator)


def end_early(
    session: Session,
    progress: Progress,
    interruption: Interruption,
    saver: Saver,
    journal: Journal | None,
    sync: Sync,
) -> NoReturn:
    """Ends this process once what was begun is saved, and says how to go on; all ranks call it.

    Raises:
        SystemExit: Always.
    """
    is_planned = progress.step == session.persistence.stop_at_step
    is_saved = saver.finish()
    if journal:
        asked = "a signal to another rank" if not is_planned else f"{_STOP_AT_STEP} {progress.step}"
        reason = interruption.reason or asked
        place = progress.samples_seen, progress.epoch
        journal.write(metrics.STOP, *place, reason=reason, saved=is_saved)
        journal.close()
        with journal.tolerating("plots"):
            draw_plots(session.folder.path)
        sync.finish()
        what = "saved and ended"
        if not is_saved:
            newest = newest_checkpoint(session.folder.checkpoints)
            what = f"ended; not saved, {newest.folder.name if newest else 'no checkpoint'} stands:"
        command = typed_command(without=_STOP_AT_STEP if is_planned else None)
        say(f"{what} after step {progress.step} ({reason}). To go on:\n  {command}")
    session.accelerator.wait_for_everyone()  # a rank that ends first would have the others killed
    end_tracking(session.accelerator)
    raise SystemExit(0 if is_planned and is_saved else EXIT_INTERRUPTED)
