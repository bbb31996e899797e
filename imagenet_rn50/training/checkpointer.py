"""Save checkpoints in the background: training waits for the copy to host memory alone.

One checkpoint is written at a time, and older ones are removed only after a new one is complete. If
a save fails (a full disk, say), the run logs it, keeps the previous checkpoint and continues.

Accelerate's `save_state` would write the same files, but stalls training until they are on disk,
writes into the final directory and is not atomic.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from imagenet_rn50.runs import metrics
from imagenet_rn50.runs.checkpoint import (
    SCORE,
    Checkpoint,
    best_score,
    commit,
    folder_name,
    prune,
    remove_partial,
)
from imagenet_rn50.runs.metrics import MetricsLogger
from imagenet_rn50.runs.run_dir import RunDir
from imagenet_rn50.training.config import CheckpointConfig
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.training.state import (
    StateDict,
    TrainState,
    copy_to_cpu,
    num_bytes,
    write_state,
)
from imagenet_rn50.utils.files import TEMPORARY_SUFFIX
from imagenet_rn50.utils.logging import logger


@dataclass(frozen=True)
class SaveResult:
    """What a save did.

    Attributes:
        bytes: Size of the state.
        stall_seconds: How long training waited for it.
        seconds: Until it was on disk, or failed.
        failed: Why it failed, or None.
    """

    bytes: int
    stall_seconds: float
    seconds: float
    failed: str | None


class AsyncCheckpointer:
    """Saves the checkpoints of one run, on the rank that logs; elsewhere its methods do nothing.

    Args:
        run: Run directory.
        config: How often, and how many to keep.
        logger: Logs the result of each save.
        after_save: Called with each checkpoint that is complete, in the writing thread.
        enabled: False on all ranks but one: their states are equal.
        saved: The state that the newest checkpoint holds, if there is one.

    Attributes:
        last_seconds: How long the last save took that succeeded; None before that.
    """

    def __init__(
        self,
        run: RunDir,
        config: CheckpointConfig,
        logger: MetricsLogger,
        after_save: Callable[[Checkpoint], None] = lambda checkpoint: None,
        *,
        enabled: bool = True,
        saved: TrainState | None = None,
    ) -> None:
        self._run = run
        self._config = config
        self._logger = logger
        self._after_save = after_save
        self._enabled = enabled
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpointer")
        self._pending: tuple[Progress, Future[SaveResult]] | None = None
        self._last_failed = False
        self.last_seconds: float | None = None
        self._newest = saved.key if saved else None
        self._last_save = time.monotonic()
        if enabled:
            remove_partial(run.checkpoints)

    def is_due(self) -> bool:
        """Return True once every --checkpoint-minutes; False on ranks that do not save."""
        minutes = self._config.checkpoint_minutes
        if not self._enabled or minutes is None or self._is_busy():
            return False
        is_due = time.monotonic() - self._last_save > minutes * 60
        if is_due:
            self._last_save = time.monotonic()
        return is_due

    def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Start to save a state, unless the newest checkpoint holds it.

        Waits for an earlier save that is still being written.

        Args:
            state: What to save.
            metadata: What identifies the run, JSON; `score`, if the state was validated.
        """
        if not self._enabled:
            return
        began = time.monotonic()
        self.wait()
        if self._newest == state.key:
            return
        self._newest = state.key
        copied = copy_to_cpu(state.state_dict())
        stall = time.monotonic() - began
        self._last_save = time.monotonic()
        future = self._executor.submit(self._write, state.progress, copied, stall, metadata)
        self._pending = state.progress, future

    def wait(self) -> bool:
        """Wait until the pending save has ended; return whether the last one succeeded."""
        if self._pending is not None:
            self._pending[1].result()
            self.log_result()
        return not self._last_failed

    def log_result(self) -> None:
        """Log the result of a save that has ended since the last call."""
        if self._pending is None or self._is_busy():
            return
        progress, future = self._pending
        result, self._pending = future.result(), None
        self._last_failed = result.failed is not None
        if result.failed:
            self._newest = None
            logger.info(
                f"saving checkpoint {folder_name(progress.samples_seen)} failed: {result.failed}\n"
                "  the previous checkpoint is kept, and training continues"
            )
        self._logger.write(
            metrics.CHECKPOINT, progress.samples_seen, progress.epoch, **asdict(result)
        )

    def close(self) -> None:
        """Stop the thread after what it is writing."""
        self._executor.shutdown()

    def _is_busy(self) -> bool:
        return self._pending is not None and not self._pending[1].done()

    def _write(
        self, progress: Progress, state: StateDict, stall: float, metadata: dict[str, Any]
    ) -> SaveResult:
        """Write a checkpoint; in the thread."""
        began = time.monotonic()
        checkpoints = self._run.checkpoints
        final = checkpoints / folder_name(progress.samples_seen)
        temporary = final.with_name(final.name + TEMPORARY_SUFFIX)
        failed = None
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write_state(temporary, state)
            self._logger.sync()  # metrics that led here are on disk before the checkpoint is
            # Compare only with checkpoints that are on disk: the best may have failed to save.
            is_best = metadata.get(SCORE, -1.0) > best_score(checkpoints)
            checkpoint = commit(
                temporary, final, progress.samples_seen, is_best=is_best, metadata=metadata
            )
        except Exception as error:  # safetensors raises its own type on a full disk
            failed = f"{type(error).__name__}: {error}"
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            self._clean_up(checkpoint)
        result = SaveResult(num_bytes(state), stall, time.monotonic() - began, failed)
        if not failed:
            self.last_seconds = stall + result.seconds
        return result

    def _clean_up(self, checkpoint: Checkpoint) -> None:
        """Prune and upload; in the thread. The checkpoint is saved whatever happens here."""
        try:
            prune(checkpoint.folder.parent, self._config.keep_last)
            self._after_save(checkpoint)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            logger.info(
                f"{checkpoint.folder.name} is saved; pruning or uploading failed: {problem}"
            )
