"""The saver: copies the state to host memory at once, and brings it to the disk in a thread.

Training stands still for the copy alone. One checkpoint is written at a time; older ones are
removed only after a new one is whole. When the disk is full the old ones stand, and the run says so
and goes on: the next save may find room.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from imagenet_rn50.console import say
from imagenet_rn50.files import TEMPORARY_SUFFIX
from imagenet_rn50.runs import metrics
from imagenet_rn50.runs.checkpoints import (
    SCORE,
    Checkpoint,
    best_score,
    folder_name,
    prune,
    seal,
    sweep,
)
from imagenet_rn50.runs.metrics import Journal
from imagenet_rn50.training.checkpoint import State, num_bytes, write_state
from imagenet_rn50.training.learner import Learner
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.training.schedules import learning_rate
from imagenet_rn50.training.session import Session, environment

_NOWHERE = -1, False


@dataclass(frozen=True)
class Saved:
    """What became of a save.

    Attributes:
        bytes: Size of the state.
        stall_seconds: How long training stood still for it.
        seconds: Until it was on disk, or failed.
        failed: Why it is not there, or None.
    """

    bytes: int
    stall_seconds: float
    seconds: float
    failed: str | None


class Saver:
    """Saves checkpoints of one run; only the rank with the journal does.

    Args:
        session: What stays the same.
        learner: What is saved.
        journal: On the one rank that writes.
        after_save: Is given each checkpoint once it is whole, in the writing thread.
    """

    def __init__(
        self,
        session: Session,
        learner: Learner,
        journal: Journal | None,
        after_save: Callable[[Checkpoint], None] = lambda checkpoint: None,
    ) -> None:
        self._session = session
        self._learner = learner
        self._journal = journal
        self._after_save = after_save
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._under_way: tuple[Progress, Future[Saved]] | None = None
        self._last_failed = False
        self._newest = session.start.samples_seen, session.start.evaluation_due
        self._scores: dict[int, float] = {}  # of the last validation, by progress
        self._began = time.monotonic()
        if journal:
            sweep(session.folder.checkpoints)

    def is_time(self) -> bool:
        """Says, once each --checkpoint-minutes, that a save is due; False on other ranks."""
        minutes = self._session.persistence.checkpoint_minutes
        if self._journal is None or minutes is None or self._is_busy():
            return False
        is_due = time.monotonic() - self._began > minutes * 60
        if is_due:
            self._began = time.monotonic()
        return is_due

    def save(
        self,
        progress: Progress,
        samples_hash: int,
        *,
        score: float | None = None,
        evaluation_due: bool = False,
    ) -> None:
        """Begins to save where the run stands; waits for an earlier save that is still under way.

        Args:
            progress: Where the run stands.
            samples_hash: Of all samples seen so far.
            score: What validation has just said of it, if it has.
            evaluation_due: Whether an epoch has ended that is not evaluated yet.
        """
        if self._journal is None:
            return
        began = time.monotonic()
        self.finish()
        if score is not None:
            self._scores = {progress.samples_seen: score}
        if self._newest == (progress.samples_seen, evaluation_due):
            return
        self._newest = progress.samples_seen, evaluation_due
        state = self._learner.capture()
        facts = self._facts(progress, samples_hash, evaluation_due=evaluation_due)
        stall = time.monotonic() - began
        self._began = time.monotonic()
        future = self._thread.submit(self._write, progress, state, stall, facts)
        self._under_way = progress, future

    def finish(self) -> bool:
        """Waits for what is under way; returns whether the last save succeeded."""
        if self._under_way is not None:
            self._under_way[1].result()
            self.report()
        return not self._last_failed

    def report(self) -> None:
        """Writes down what became of a save that has ended since the last call."""
        if self._journal is None or self._under_way is None or self._is_busy():
            return
        progress, future = self._under_way
        saved, self._under_way = future.result(), None
        self._last_failed = saved.failed is not None
        if self._last_failed:
            self._newest = _NOWHERE
        if saved.failed:
            say(
                f"the checkpoint {folder_name(progress.samples_seen)} could not be saved: "
                f"{saved.failed}\n  the one before it stands, and the run goes on"
            )
        place = progress.samples_seen, progress.epoch
        self._journal.write(metrics.CHECKPOINT, *place, **asdict(saved))

    def close(self) -> None:
        """Ends the thread, after what it is writing."""
        self._thread.shutdown()

    def _is_busy(self) -> bool:
        """Says whether a checkpoint is being written."""
        return self._under_way is not None and not self._under_way[1].done()

    def _write(
        self, progress: Progress, state: State, stall: float, facts: dict[str, Any]
    ) -> Saved:
        """Writes a checkpoint; in the thread."""
        began = time.monotonic()
        assert self._journal is not None
        checkpoints = self._session.folder.checkpoints
        final = checkpoints / folder_name(progress.samples_seen)
        temporary = final.with_name(final.name + TEMPORARY_SUFFIX)
        failed = None
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write_state(temporary, state)
            self._journal.sync()  # what led here is on disk before the checkpoint is
            # Beats what can be gone on from; what could not be saved is no longer there to beat.
            is_best = facts.get(SCORE, -1.0) > best_score(checkpoints)
            sealed = seal(temporary, final, progress.samples_seen, is_best=is_best, **facts)
        except Exception as error:  # safetensors raises its own on a full disk
            failed = f"{type(error).__name__}: {error}"
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            self._follow(sealed)
        return Saved(num_bytes(state), stall, time.monotonic() - began, failed)

    def _follow(self, sealed: Checkpoint) -> None:
        """Does what comes after a save; in the thread. The checkpoint stands, whatever happens."""
        try:
            prune(sealed.folder.parent, self._session.persistence.keep_last)
            self._after_save(sealed)
        except Exception as error:
            say(f"{sealed.folder.name} is saved, but then: {type(error).__name__}: {error}")

    def _facts(
        self, progress: Progress, samples_hash: int, *, evaluation_due: bool
    ) -> dict[str, Any]:
        """Returns what identifies the run and where it stands."""
        session, plateau = self._session, self._learner.plateau
        score = self._scores.get(progress.samples_seen)
        return {
            **({} if score is None else {SCORE: score}),
            "evaluation_due": evaluation_due,
            "samples_hash": f"{samples_hash:016x}",
            "next_lr": learning_rate(session.recipe, progress.epoch, plateau.num_cuts),
            "plateau": plateau.state_dict(),
            "recipe": session.recipe.model_dump(mode="json"),
            "shards": session.identity,
            "origin": session.start.origin,
            "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **environment(session.accelerator),
        }
