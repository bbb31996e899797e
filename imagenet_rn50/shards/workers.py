"""Makes shards in several processes, and shows how far they are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imagenet_rn50.errors import InputError
from imagenet_rn50.processes import children_without_signals
from imagenet_rn50.shards.plan import ShardTask
from imagenet_rn50.shards.shard import ShardRecord, make_shard

_POLL_SECONDS = 0.2
_counters: Any = None  # in a worker: (pictures, bytes) done, shared with the parent


def make_shards(
    tasks: Sequence[ShardTask], folder: Path, num_workers: int, bar: tqdm[Any]
) -> Iterator[ShardRecord]:
    """Makes shards and yields the record of each as soon as it is finished.

    Args:
        tasks: The shards to make.
        folder: Where they shall stand.
        num_workers: How many processes; 1 works in this one.
        bar: Counts pictures.

    Raises:
        InputError: When a picture cannot be used and the options say to stop.
        OSError: When the disk is full, or the source cannot be read.
    """
    progress = _Progress(bar)
    num_workers = min(num_workers, len(tasks))
    if num_workers <= 1:
        for task in tasks:
            yield make_shard(task, folder, progress.add)
            progress.show()
    else:
        yield from _in_processes(tasks, folder, num_workers, progress)


class _Progress:
    """Feeds pictures and bytes to a bar."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar
        self._begin = self._shown = time.monotonic()
        self._counted = self.pictures = self.bytes = 0

    def add(self, num_bytes: int) -> None:
        """Counts one more picture."""
        self.pictures += 1
        self.bytes += num_bytes
        if time.monotonic() - self._shown > _POLL_SECONDS:
            self.show()

    def show(self) -> None:
        """Brings the bar up to date."""
        self._shown = time.monotonic()
        rate = self.bytes / max(self._shown - self._begin, 1e-9)
        self._bar.set_postfix_str(f"{rate / 1e6:.1f} MB/s", refresh=False)
        self._bar.update(self.pictures - self._counted)
        self._counted = self.pictures


def _in_processes(
    tasks: Sequence[ShardTask], folder: Path, num_workers: int, progress: _Progress
) -> Iterator[ShardRecord]:
    """Makes shards in worker processes; on an error they are stopped at once."""
    context = multiprocessing.get_context("spawn")
    counters = context.Array("q", 2)
    executor = ProcessPoolExecutor(
        num_workers, context, initializer=_begin_worker, initargs=(os.getpid(), counters)
    )
    try:
        with children_without_signals((signal.SIGINT,)):  # Ctrl-C is for this process to handle
            running: set[Future[ShardRecord]] = {
                executor.submit(_work, task, str(folder)) for task in tasks
            }
        while running:
            done, running = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            progress.pictures, progress.bytes = counters[:]
            progress.show()
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise InputError(
            "a worker process was killed from outside, perhaps because memory ran out",
            found=f"{num_workers} workers; finished shards are kept",
            fix="give the same command again, with fewer --workers",
        ) from None
    except BaseException:
        for process in list(executor._processes.values()):
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _begin_worker(parent: int, counters: Any) -> None:
    """Prepares a worker process."""
    global _counters
    _counters = counters
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _leave(*_: object) -> None:
    """Ends a worker the orderly way, so that it removes what it has half-written."""
    raise SystemExit(1)


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, even killed."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def _work(task: ShardTask, folder: str) -> ShardRecord:
    """Makes one shard in a worker."""
    try:
        return make_shard(task, Path(folder), _count)
    except SystemExit:
        # The executor would catch it and take the next task.
        os._exit(1)


def _count(num_bytes: int) -> None:
    with _counters.get_lock():
        _counters[0] += 1
        _counters[1] += num_bytes
