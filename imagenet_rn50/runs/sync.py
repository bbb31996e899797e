"""`--sync`: upload a run after each save, and download it on a new machine.

    ADDRESS/
      latest.json                  path, bytes and sha256 of each file of the run; written last
      objects/<sha256>-<name>      the files
      logs.md  metrics.jsonl       the newest, for people; never downloaded

An object never changes, and latest.json lists complete ones only. So wherever an upload is cut off,
a download finds one whole state of the run, and a file that did not change is not uploaded again.
Objects that are no longer listed are removed once latest.json is written.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from imagenet_rn50.classes import FILE_NAME as CLASSES_FILE
from imagenet_rn50.recipe import Recipe, load_recipe
from imagenet_rn50.runs.checkpoint import (
    MANIFEST,
    Checkpoint,
    checkpoint_folders,
    newest_checkpoint,
    quarantine,
    verify,
    verify_sizes,
)
from imagenet_rn50.runs.metrics import FILE_NAME as METRICS
from imagenet_rn50.runs.run_dir import RECIPE, SHARDS_FILE, RunDir
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import TEMPORARY_SUFFIX, sha256_of_file, write_json
from imagenet_rn50.utils.logging import logger
from imagenet_rn50.utils.parsing import parse_json
from imagenet_rn50.utils.storage import MissingFileError, RemoteFolder, UnusableFileError

STAGING = f"sync{TEMPORARY_SUFFIX}"
_LATEST, _OBJECTS, _CHECKPOINTS, _LOGS = "latest.json", "objects", "checkpoints", "logs.md"
_SMALL_FILES = (SHARDS_FILE, CLASSES_FILE, METRICS, _LOGS, "plots/*.png")


@dataclass(frozen=True)
class File:
    """A file of a run, as latest.json lists it.

    Attributes:
        path: Relative to the run directory.
        bytes: Size.
        sha256: Hash.
    """

    path: str
    bytes: int
    sha256: str

    @property
    def object(self) -> str:
        """Path of its content, relative to the address."""
        return f"{_OBJECTS}/{self.sha256}-{PurePosixPath(self.path).name}"

    @property
    def checkpoint(self) -> str | None:
        """Name of the checkpoint that it belongs to, if any."""
        first, _, rest = self.path.partition("/")
        return rest.partition("/")[0] if first == _CHECKPOINTS else None

    def is_valid(self) -> bool:
        """Return whether the path stays inside the run directory, and the hash can be one."""
        parts = PurePosixPath(self.path).parts
        is_inside = bool(parts) and not self.path.startswith("/") and ".." not in parts
        return is_inside and len(self.sha256) == 64 and self.sha256.isalnum()


@dataclass(frozen=True)
class Snapshot:
    """The files of a run at one moment, kept until they are uploaded.

    Attributes:
        folder: Holds them, under their paths.
        files: What they are; recipe.yaml is the last.
    """

    folder: Path
    files: tuple[File, ...]

    def discard(self) -> None:
        """Remove its links and copies."""
        shutil.rmtree(self.folder, ignore_errors=True)


def take_snapshot(run: RunDir) -> Snapshot:
    """Link the checkpoints of a run, which takes no space, and copy its small files.

    A checkpoint that lacks a file is skipped. No checkpoint may be removed meanwhile.
    """
    (run.path / STAGING).mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=run.path / STAGING))
    files: list[File] = []

    def add(path: Path, keep: Callable[[Path, Path], Any], **entry: Any) -> None:
        name = path.relative_to(run.path).as_posix()
        kept = _with_parents(folder / name)
        keep(path, kept)
        entry = entry or {"bytes": kept.stat().st_size, "sha256": sha256_of_file(kept)}
        files.append(File(name, **entry))

    for pattern in _SMALL_FILES:
        for path in sorted(run.path.glob(pattern)):
            add(path, shutil.copyfile)
    for checkpoint in checkpoint_folders(run.checkpoints):
        try:
            entries = verify_sizes(checkpoint).files
        except InputError as error:
            logger.info(f"{checkpoint.name} is not uploaded: {error}")
            continue
        for name, entry in entries.items():
            add(checkpoint / name, _link_or_copy, **entry)
        add(checkpoint / MANIFEST, _link_or_copy)
    add(run.path / RECIPE, shutil.copyfile)
    return Snapshot(folder, tuple(files))


@dataclass
class RemoteRun:
    """A run at an address.

    Args:
        folder: The address.
    """

    folder: RemoteFolder
    _objects: set[str] | None = field(default=None, repr=False)
    _known_latest: list[str | None] = field(default_factory=list, repr=False)

    def latest(self) -> list[File] | None:
        """Return the files of the run, or None if there is none.

        Raises:
            InputError: If they cannot be read, or do not describe a run.
        """
        text = self._read_latest()
        self._known_latest = [text]
        if text is None:
            return None
        try:
            files = [File(**entry) for entry in parse_json(text, _LATEST)["files"]]
            is_valid = bool(files) and all(file.is_valid() for file in files)
        except (ValueError, KeyError, TypeError, AttributeError):
            is_valid = False
        if not is_valid:
            raise InputError(
                f"{self.folder.public}/{_LATEST} is damaged",
                expected="what --sync wrote: path, bytes and sha256 of each file of a run",
            )
        return files

    def require_writable(self) -> None:
        """Upload and remove an empty file, before hours are spent.

        Raises:
            InputError: If that fails.
        """
        with tempfile.TemporaryDirectory() as name:
            probe = Path(name) / "probe"
            probe.touch()
            self.folder.upload(probe, probe.name)
        self.folder.remove(probe.name)

    def upload(self, snapshot: Snapshot, is_superseded: Callable[[], bool] = lambda: False) -> bool:
        """Upload a snapshot, then remove the objects that are no longer listed.

        Args:
            snapshot: From `take_snapshot`.
            is_superseded: Called before each file; if it returns True, the upload is abandoned and
                the run at the address is left as it was.

        Returns:
            Whether the upload was completed.

        Raises:
            InputError: If that fails, or another process has uploaded since `latest`.
        """
        if self._objects is None:
            self._objects = {f"{_OBJECTS}/{name}" for name in self.folder.names(_OBJECTS)}
        for file in snapshot.files:
            if file.object not in self._objects:
                if is_superseded():
                    return False
                self.folder.upload(snapshot.folder / file.path, file.object)
                self._objects.add(file.object)
        latest = snapshot.folder / _LATEST
        write_json(latest, {"files": [vars(file) for file in snapshot.files]})
        if self._read_latest() not in self._known_latest:
            raise InputError(
                f"another process syncs to {self.folder.public}",
                expected="an address of its own for each run",
                fix="stop one of the two processes",
            )
        # An upload that is reported as failed may have succeeded: then this is ours, too.
        self._known_latest.append(latest.read_text(encoding="utf-8"))
        self.folder.upload(latest, _LATEST)
        self._known_latest = self._known_latest[-1:]
        for name in (_LOGS, METRICS):
            if (snapshot.folder / name).is_file():
                self.folder.upload(snapshot.folder / name, name)
        for name in self._objects - {file.object for file in snapshot.files}:
            self.folder.remove(name)
            self._objects.remove(name)
        return True

    def recipe(self, files: list[File]) -> Recipe:
        """Return the recipe of the run at the address.

        Raises:
            InputError: If it cannot be downloaded.
        """
        with tempfile.TemporaryDirectory() as name:
            self._download(next(file for file in files if file.path == RECIPE), Path(name))
            return load_recipe(str(Path(name) / RECIPE))

    def download(self, files: list[File], run: RunDir) -> None:
        """Download the run and verify it; recipe.yaml, which makes it a run, comes last.

        A checkpoint that is damaged at the address is skipped. If a download is cut off, the next
        call completes it.

        Args:
            files: From `latest`.
            run: The run directory; may hold an older state of the same run.

        Raises:
            InputError: If a file cannot be downloaded, or no checkpoint is intact.
        """
        (run.path / STAGING).mkdir(parents=True, exist_ok=True)
        run.checkpoints.mkdir(exist_ok=True)
        for file in files:
            if file.checkpoint is None and file.path != RECIPE:
                self._download(file, run.path)
        names = list(dict.fromkeys(file.checkpoint for file in files if file.checkpoint))
        are_here = [
            self._download_checkpoint(name, [f for f in files if f.checkpoint == name], run)
            for name in names
        ]
        if names and not any(are_here) and newest_checkpoint(run.checkpoints) is None:
            raise InputError(
                f"every checkpoint at {self.folder.public} is damaged, and {run.path} has none",
                expected="at least one intact checkpoint",
                found=", ".join(names),
                fix="restore its files at the address; or start a new run, with another --sync and "
                "another --run",
            )
        for file in files:
            if file.path == RECIPE:
                self._download(file, run.path)
        shutil.rmtree(run.path / STAGING)

    def _download_checkpoint(self, name: str, files: list[File], run: RunDir) -> bool:
        """Download a checkpoint, unless it is intact here; return whether it is now."""
        final = run.checkpoints / name
        try:
            verify(final)
        except InputError:
            pass
        else:
            return True
        staging = run.path / STAGING / "download"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            for file in files:
                self._download(file, staging)
            verify(staging / _CHECKPOINTS / name)
        except UnusableFileError as error:
            logger.info(f"skipping a damaged checkpoint: {error}")
            return False
        if final.exists():
            quarantine(final)
        (staging / _CHECKPOINTS / name).rename(final)
        return True

    def _download(self, file: File, folder: Path) -> None:
        target = _with_parents(folder / file.path)
        self.folder.download(file.object, target, num_bytes=file.bytes, sha256=file.sha256)

    def _read_latest(self) -> str | None:
        with tempfile.TemporaryDirectory() as name:
            target = Path(name) / _LATEST
            try:
                self.folder.download(_LATEST, target, is_json=True)
            except MissingFileError:
                return None
            return target.read_text(encoding="utf-8")


class AsyncUploader:
    """Upload a run in a thread: neither training nor the next save waits for it.

    An upload that fails is logged once, until one succeeds, and never stops training.

    Args:
        run: The run directory.
        address: Where to, as given to --sync; None disables it.
        enabled: False on all ranks but one; there, all methods do nothing.

    Attributes:
        last_seconds: How long the last upload took, or failed; None before one.
    """

    def __init__(self, run: RunDir, address: str | None, *, enabled: bool) -> None:
        self.last_seconds: float | None = None
        self._run = run
        self._remote: RemoteRun | None = None
        if address is None or not enabled:
            return
        self._remote = open_remote(address)
        self._remote.latest()
        shutil.rmtree(run.path / STAGING, ignore_errors=True)  # of a process that was killed
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sync")
        self._lock = threading.Lock()
        self._pending: Snapshot | None = None
        self._is_finishing = False
        self._has_failed = False
        if newest_checkpoint(run.checkpoints):
            self.upload()  # an earlier process may have been killed before it did

    def upload(self, checkpoint: Checkpoint | None = None) -> None:
        """Start to upload the run as it is now; an older state that still waits is dropped."""
        if self._remote is None:
            return
        try:
            snapshot = take_snapshot(self._run)
        except Exception as error:  # such as a disk that is full
            self._log_failure(error)
            return
        with self._lock:
            older, self._pending = self._pending, snapshot
        if older:
            older.discard()
        else:
            self._executor.submit(self._upload_pending)

    def finish(self) -> None:
        """Upload the run as it is at the end, and wait until that is done."""
        if self._remote is None:
            return
        self._is_finishing = True
        self.upload()
        self._executor.shutdown()
        shutil.rmtree(self._run.path / STAGING, ignore_errors=True)
        if self._has_failed:
            logger.info(
                f"{self._remote.folder.public} lacks the end of the run; it is only in "
                f"{self._run.path}"
            )

    def _upload_pending(self) -> None:
        """Upload the snapshot that waits; in the thread."""
        with self._lock:
            snapshot, self._pending = self._pending, None
        assert snapshot is not None
        assert self._remote is not None
        began = time.monotonic()
        try:
            if self._remote.upload(snapshot, self._is_superseded):
                if self._has_failed:
                    logger.info(f"uploading works again: {self._remote.folder.public}")
                self._has_failed = False
        except Exception as error:
            self._log_failure(error)
        finally:
            self.last_seconds = time.monotonic() - began
            snapshot.discard()

    def _is_superseded(self) -> bool:
        # At the end a launcher may leave seconds: give way to the newer state that waits.
        return self._is_finishing and self._pending is not None

    def _log_failure(self, error: Exception) -> None:
        if not self._has_failed:
            # A storage's own messages may hold a token; ours do not.
            reason = error if isinstance(error, InputError) else type(error).__name__
            logger.info(
                f"uploading the run failed: {reason}\n  training continues; the next save retries"
            )
        self._has_failed = True


def open_remote(address: str) -> RemoteRun:
    """Return the run at an address of fsspec, or at a path, which may be relative."""
    return RemoteRun(RemoteFolder(_absolute(address)))


def require_outside_runs(address: str, run: RunDir) -> None:
    """Refuse a path where an upload would replace or remove files of a run directory.

    Raises:
        InputError: If the path is in this run directory, is another one, or keeps this one among
            its objects.
    """
    scheme, _, path = _absolute(address).rpartition("://")
    if scheme not in {"", "file", "local"}:
        return
    here, there = run.path.resolve(), Path(path).resolve()
    is_within = there.is_relative_to(here) or here.is_relative_to(there / _OBJECTS)
    if is_within or (there / RECIPE).is_file():
        raise InputError(
            f"--sync {address}: a run cannot be uploaded into a run directory",
            expected="an address for this run alone, outside of every run directory",
            found=f"{there}, and --run {here}",
            fix="choose another --sync",
        )


def _absolute(address: str) -> str:
    return address if "://" in address else str(Path(address).absolute())


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copyfile(source, target)


def _with_parents(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
