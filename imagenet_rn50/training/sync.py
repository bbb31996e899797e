"""`--sync`: the run is brought elsewhere after each save, and fetched from there on a new machine.

One rank brings it, in a thread of its own, so that neither training nor the next save waits. What
goes wrong with that is told once and never ends the training.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from imagenet_rn50.recipe import Recipe
from imagenet_rn50.runs.checkpoint import Checkpoint, newest_checkpoint, samples_of
from imagenet_rn50.runs.compatibility import changes_of_recipe, check_compatible
from imagenet_rn50.runs.run_dir import RECIPE, RunDir
from imagenet_rn50.runs.sync import (
    OBJECTS,
    STAGING,
    RemoteRun,
    Snapshot,
    Superseded,
    clear_staging,
    take_snapshot,
)
from imagenet_rn50.training.config import NONE, CheckpointConfig
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.logging import logger
from imagenet_rn50.utils.storage import RemoteFolder


def fetch_run(
    accelerator: Accelerator, run: RunDir, recipe: Recipe, shards: Path, config: CheckpointConfig
) -> None:
    """Fetches the run from where it is synced to, where that is further; all ranks call it.

    The main process goes first, and brings there what a broken sync left here alone: where the run
    goes on is its choice. Then the first process of each other machine fetches, which finds
    everything here where the machines share the run folder.

    Args:
        accelerator: Knows the ranks.
        run: The run folder.
        recipe: What the run shall be.
        shards: Folder of the shards' manifest.
        config: What the user wants.

    Raises:
        InputError: When the address cannot be read or written, holds another run, or lies where a
            run folder does; on all ranks.
    """
    if config.sync is None:
        return
    num_machines = sum(gather_object([bool(accelerator.is_local_main_process)]))
    problem: list[InputError | None] = [None]
    if accelerator.is_main_process:
        try:
            _require_apart(run, config.sync)
            remote = RemoteRun(_address(config.sync))
            newest_there = _fetch(remote, run, recipe, shards, config)
            remote.require_writable()
            if num_machines > 1:
                _bring_what_is_newer(remote, run, newest_there)
        except InputError as error:
            problem[0] = error
    broadcast_object_list(problem)
    if problem[0] is not None:
        raise problem[0]
    if accelerator.is_local_main_process and not accelerator.is_main_process:
        _fetch(RemoteRun(_address(config.sync)), run, recipe, shards, config)
    accelerator.wait_for_everyone()


def _fetch(
    remote: RemoteRun, run: RunDir, recipe: Recipe, shards: Path, config: CheckpointConfig
) -> int:
    """Fetches a run, if what stands there is further than what stands here.

    Returns:
        How far the newest state is that stands there; -1 where none does.
    """
    is_run = (run.path / RECIPE).is_file()
    is_fetched_in_part = (run.path / STAGING).is_dir() and not is_run
    if not is_fetched_in_part:
        run.check(recipe, shards, config.allow_change)
    files = remote.latest()
    if files is None:
        return -1
    public = remote.folder.public
    if config.resume == NONE:
        raise InputError(
            f"--resume none: {public} holds a run",
            expected="an address without one, for a run that begins anew",
            fix="name another address with --sync",
        )
    subject = f"{public} already holds a run of another recipe"
    changes = changes_of_recipe(remote.recipe(files), recipe)
    check_compatible(changes, config.allow_change, subject=subject)
    names = {file.checkpoint for file in files if file.checkpoint}
    newest_there = max((samples_of(Path(name)) for name in names), default=0)
    newest_here = newest_checkpoint(run.checkpoints)
    if is_run and newest_here and newest_here.samples_seen >= newest_there:
        return newest_there
    logger.info(f"fetching the run from {public}")
    remote.fetch(files, run)
    return newest_there


def _bring_what_is_newer(remote: RemoteRun, run: RunDir, newest_there: int) -> None:
    """Brings the run there, if what stands here is further."""
    newest_here = newest_checkpoint(run.checkpoints)
    if newest_here is None or newest_here.samples_seen <= newest_there:
        return
    logger.info(
        f"bringing {newest_here.folder.name} to {remote.folder.public}, for the other machines"
    )
    snapshot = take_snapshot(run)
    try:
        remote.bring(snapshot)
    finally:
        snapshot.discard()


class Sync:
    """Brings a run elsewhere.

    Args:
        run: The run folder.
        config: Says where to, if anywhere.
        enabled: False on the ranks that do not; there, nothing in here does anything.
    """

    def __init__(self, run: RunDir, config: CheckpointConfig, *, enabled: bool) -> None:
        self._run = run
        self._remote: RemoteRun | None = None
        if config.sync is None or not enabled:
            return
        self._remote = RemoteRun(_address(config.sync))
        self._remote.latest()
        clear_staging(run)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sync")
        self._lock = threading.Lock()
        self._waiting: Snapshot | None = None
        self._is_ending = False
        self._has_failed = False
        self._left_out: set[str] = set()
        if newest_checkpoint(run.checkpoints):
            self.bring()  # a process before this one may not have come to it

    def bring(self, checkpoint: Checkpoint | None = None) -> None:
        """Has the run brought as it stands now; what still waits for an older state does not."""
        if self._remote is None:
            return
        try:
            snapshot = take_snapshot(self._run)
        except Exception as error:  # no space for the small files, say
            self._tell(error)
            return
        for name in snapshot.damaged.keys() - self._left_out:
            logger.info(f"{name} is left out of what is synced: {snapshot.damaged[name]}")
        self._left_out = set(snapshot.damaged)
        with self._lock:
            older, self._waiting = self._waiting, snapshot
        if older:
            older.discard()
        else:
            self._thread.submit(self._work)

    def finish(self) -> None:
        """Brings the run as it stands at the end, and waits until it is there."""
        if self._remote is None:
            return
        self._is_ending = True
        self.bring()
        self._thread.shutdown()
        clear_staging(self._run)
        if self._has_failed:
            logger.info(
                f"{self._remote.folder.public} lacks the end of the run, which stands here alone"
            )

    def _work(self) -> None:
        """Brings what waits; in the thread."""
        with self._lock:
            snapshot, self._waiting = self._waiting, None
        assert snapshot is not None
        assert self._remote is not None
        try:
            self._remote.bring(snapshot, self._is_superseded)
        except Superseded:
            pass
        except Exception as error:
            self._tell(error)
        else:
            if self._has_failed:
                logger.info(f"the run is synced again: {self._remote.folder.public}")
            self._has_failed = False
        finally:
            snapshot.discard()

    def _tell(self, error: Exception) -> None:
        """Says what went wrong, if that is new."""
        if not self._has_failed:
            # What storages say may hold a token; our own messages do not.
            told = error if isinstance(error, InputError) else type(error).__name__
            logger.info(
                f"the run is not synced: {told}\n  training goes on, and the next save tries again"
            )
        self._has_failed = True

    def _is_superseded(self) -> bool:
        """Says whether an older state is not worth the time that is left."""
        return self._is_ending and self._waiting is not None


def _address(given: str) -> RemoteFolder:
    """Return the folder that --sync names; a path may be relative."""
    return RemoteFolder(given if "://" in given else str(Path(given).absolute()))


def _require_apart(run: RunDir, given: str) -> None:
    """Refuses a path where what is brought would replace or remove files of a run folder."""
    scheme, _, path = _address(given).location.rpartition("://")
    if scheme not in {"", "file", "local"}:
        return
    here, there = run.path.resolve(), Path(path).resolve()
    is_within = there.is_relative_to(here) or here.is_relative_to(there / OBJECTS)
    if is_within or (there / RECIPE).is_file():
        raise InputError(
            f"--sync {given}: a run is not brought into a run folder",
            expected="an address for this run alone, apart from every run folder",
            found=f"{there}, and --run {here}",
            fix="name another address with --sync",
        )
