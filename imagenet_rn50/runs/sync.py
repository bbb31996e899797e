"""What `--sync` brings elsewhere: the files of a run at one moment, kept from being removed.

A run that is kept elsewhere too and outlives its machine: what `--sync` reads and writes.

    ADDRESS/
      latest.json                  each file of the run: its path, bytes and sha256; written last
      objects/<sha256>-<name>      the files themselves
      logs.md, metrics.jsonl       the newest, for people; nothing reads them back

An object never changes, and latest.json names only those that are whole. So a reader finds one
state of the run or the next, whenever the writer is cut off, and what has not changed since is not
brought again. What latest.json names no longer is removed only after it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from imagenet_rn50.classes import FILE_NAME as CLASSES_FILE
from imagenet_rn50.recipe import Recipe, load_recipe
from imagenet_rn50.runs.checkpoint import (
    MANIFEST,
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

OBJECTS, CHECKPOINTS, LOGS = "objects", "checkpoints", "logs.md"
STAGING = f"sync{TEMPORARY_SUFFIX}"
_SMALL_FILES = (SHARDS_FILE, CLASSES_FILE, METRICS, LOGS, "plots/*.png")


@dataclass(frozen=True)
class File:
    """A file of a run, as latest.json tells of it.

    Attributes:
        path: From the run folder on.
        bytes: Its size.
        sha256: Its hash.
    """

    path: str
    bytes: int
    sha256: str

    @property
    def object(self) -> str:
        """Where its content stands, from the address on."""
        return f"{OBJECTS}/{self.sha256}-{PurePosixPath(self.path).name}"

    @property
    def checkpoint(self) -> str | None:
        """Name of the checkpoint that it belongs to, if it does."""
        first, _, rest = self.path.partition("/")
        return rest.partition("/")[0] if first == CHECKPOINTS else None


@dataclass(frozen=True)
class Snapshot:
    """The files of a run at one moment, kept from being removed until they have been brought.

    Attributes:
        folder: Where they are kept, under the paths that they have in the run.
        files: What they are; recipe.yaml is the last.
        damaged: Why checkpoints were left out, by their names.
    """

    folder: Path
    files: tuple[File, ...]
    damaged: dict[str, str] = field(default_factory=dict)

    def discard(self) -> None:
        """Lets go of them."""
        shutil.rmtree(self.folder, ignore_errors=True)


def take_snapshot(run: RunDir) -> Snapshot:
    """Keeps hold of a run's checkpoints, by links that take no space, and of its small files.

    A checkpoint whose files are not all there is left out, for the others shall be brought.

    Args:
        run: The run; no checkpoint of it is removed meanwhile.
    """
    staging = run.path / STAGING
    staging.mkdir(exist_ok=True)
    folder, files = Path(tempfile.mkdtemp(dir=staging)), []
    paths = [path for pattern in _SMALL_FILES for path in sorted(run.path.glob(pattern))]
    for path in [*paths, run.path / RECIPE]:
        name = path.relative_to(run.path).as_posix()
        copy = place_in(folder, name)
        shutil.copyfile(path, copy)
        files.append(File(name, copy.stat().st_size, sha256_of_file(copy)))
    damaged = {}
    for checkpoint in checkpoint_folders(run.checkpoints):
        try:
            entries = _entries(checkpoint)
        except InputError as error:
            damaged[checkpoint.name] = str(error)
            continue
        for entry, (num_bytes, digest) in entries.items():
            name = f"{CHECKPOINTS}/{checkpoint.name}/{entry}"
            _link(checkpoint / entry, place_in(folder, name))
            files.insert(-1, File(name, num_bytes, digest))
    return Snapshot(folder, tuple(files), damaged)


def clear_staging(run: RunDir) -> None:
    """Removes what a process that was killed kept hold of."""
    shutil.rmtree(run.path / STAGING, ignore_errors=True)


def place_in(folder: Path, path: str) -> Path:
    """Returns a path in a folder, where its own folder is there."""
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _entries(checkpoint: Path) -> dict[str, tuple[int, str]]:
    """Returns bytes and sha256 of each file of a checkpoint; its manifest is the last.

    Raises:
        InputError: When one is missing or has another size.
    """
    listed = verify_sizes(checkpoint).files
    manifest = checkpoint / MANIFEST
    entries = {name: (entry["bytes"], entry["sha256"]) for name, entry in listed.items()}
    return entries | {MANIFEST: (manifest.stat().st_size, sha256_of_file(manifest))}


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name; copies it where the file system has none such."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


_LATEST = "latest.json"


class Superseded(Exception):
    """A newer snapshot waits, and there is no time for this one."""


@dataclass
class RemoteRun:
    """A run at an address.

    Args:
        folder: The address.
    """

    folder: RemoteFolder
    _there: set[str] | None = field(default=None, repr=False)
    _ours: list[str | None] = field(default_factory=list, repr=False)

    def latest(self) -> list[File] | None:
        """Returns what stands there, or None when nothing does.

        Raises:
            InputError: When that cannot be told, or it is no run.
        """
        text = self._read_latest()
        self._ours = [text]
        if text is None:
            return None
        try:
            files = [File(**entry) for entry in parse_json(text, _LATEST)["files"]]
        except (ValueError, KeyError, TypeError):
            files = []
        if not files or not all(map(_is_sound, files)):
            raise InputError(
                f"{self.folder.public}/{_LATEST} is damaged",
                expected="what --sync wrote: the path, bytes and sha256 of each file of a run",
            )
        return files

    def require_writable(self) -> None:
        """Makes sure that a run can be brought there, before hours are spent.

        Raises:
            InputError: When it cannot.
        """
        with tempfile.TemporaryDirectory() as name:
            probe = Path(name) / "probe"
            probe.touch()
            self.folder.upload(probe, probe.name)
        self.folder.remove(probe.name)

    def bring(self, snapshot: Snapshot, is_superseded: Callable[[], bool] = lambda: False) -> None:
        """Brings a snapshot there, and then removes what belongs to none.

        Args:
            snapshot: From `take_snapshot`.
            is_superseded: Is asked between two files.

        Raises:
            Superseded: When it says so; what is there stays as it is.
            InputError: When that fails, or another process has brought something since `latest`.
        """
        if self._there is None:
            self._there = {f"{OBJECTS}/{name}" for name in self.folder.names(OBJECTS)}
        for file in snapshot.files:
            if file.object not in self._there:
                if is_superseded():
                    raise Superseded
                self.folder.upload(snapshot.folder / file.path, file.object)
                self._there.add(file.object)
        content = {"files": [vars(file) for file in snapshot.files]}
        write_json(snapshot.folder / _LATEST, content)
        if self._read_latest() not in self._ours:
            raise InputError(
                f"another process syncs to {self.folder.public}",
                fix="end one of them; each run needs an address of its own",
            )
        # A write that fails may have been done all the same.
        self._ours.append((snapshot.folder / _LATEST).read_text(encoding="utf-8"))
        self.folder.upload(snapshot.folder / _LATEST, _LATEST)
        self._ours = self._ours[-1:]
        for name in (LOGS, METRICS):
            if (snapshot.folder / name).is_file():
                self.folder.upload(snapshot.folder / name, name)
        for name in self._there - {file.object for file in snapshot.files}:
            self.folder.remove(name)
            self._there.remove(name)

    def recipe(self, files: list[File]) -> Recipe:
        """Returns the recipe of the run that stands there.

        Raises:
            InputError: When it cannot be had.
        """
        with tempfile.TemporaryDirectory() as name:
            self._get(next(file for file in files if file.path == RECIPE), Path(name))
            return load_recipe(str(Path(name) / RECIPE))

    def fetch(self, files: list[File], run: RunDir) -> None:
        """Brings the run here, and makes sure that it is whole; `recipe.yaml` comes last.

        A checkpoint that is damaged there is passed over. What a kill cuts off is done again by the
        next call.

        Args:
            files: From `latest`.
            run: Where to; may hold an older state of the same run.

        Raises:
            InputError: When a file of it cannot be had, or no checkpoint of those that it has.
        """
        staging = run.path / STAGING
        staging.mkdir(parents=True, exist_ok=True)
        run.checkpoints.mkdir(exist_ok=True)
        for file in files:
            if file.checkpoint is None and file.path != RECIPE:
                self._get(file, run.path)
        names = list(dict.fromkeys(file.checkpoint for file in files if file.checkpoint))
        are_here = [
            self._fetch_checkpoint(name, [f for f in files if f.checkpoint == name], run)
            for name in names
        ]
        if names and not any(are_here) and newest_checkpoint(run.checkpoints) is None:
            raise InputError(
                f"every checkpoint at {self.folder.public} is damaged, and none stands here",
                expected="a whole one among them",
                found=", ".join(names),
                fix="restore its files there; or, to begin anew, name another address with --sync "
                "and another folder with --run",
            )
        for file in files:
            if file.path == RECIPE:
                self._get(file, run.path)
        shutil.rmtree(staging)

    def _fetch_checkpoint(self, name: str, files: list[File], run: RunDir) -> bool:
        """Fetches a checkpoint, unless it is here; returns whether it now is."""
        final = run.checkpoints / name
        try:
            verify(final)
        except InputError:
            pass
        else:
            return True
        parts = run.path / STAGING / "fetched"
        shutil.rmtree(parts, ignore_errors=True)
        try:
            for file in files:
                self._get(file, parts)
            verify(parts / CHECKPOINTS / name)
        except UnusableFileError as error:
            logger.info(f"passing over a damaged checkpoint: {error}")
            return False
        if final.exists():
            quarantine(final)
        (parts / CHECKPOINTS / name).rename(final)
        return True

    def _get(self, file: File, folder: Path) -> None:
        """Downloads a file to its path in a folder, and checks it."""
        target = place_in(folder, file.path)
        self.folder.download(file.object, target, num_bytes=file.bytes, sha256=file.sha256)

    def _read_latest(self) -> str | None:
        """Returns latest.json, or None where there is none."""
        with tempfile.TemporaryDirectory() as name:
            target = Path(name) / _LATEST
            try:
                self.folder.download(_LATEST, target, is_json=True)
            except MissingFileError:
                return None
            return target.read_text(encoding="utf-8")


def _is_sound(file: File) -> bool:
    """Says whether a file belongs where a run has its own: under its folder, and nowhere else."""
    parts = PurePosixPath(file.path).parts
    is_inside = bool(parts) and not file.path.startswith("/") and ".." not in parts
    return is_inside and len(file.sha256) == 64 and file.sha256.isalnum()
