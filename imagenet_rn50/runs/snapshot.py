"""What `--sync` brings elsewhere: the files of a run at one moment, kept from being removed."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from imagenet_rn50.classes import FILE_NAME as CLASSES_FILE
from imagenet_rn50.errors import InputError
from imagenet_rn50.files import TEMPORARY_SUFFIX, sha256_of_file
from imagenet_rn50.runs.checkpoints import MANIFEST, checkpoint_folders, verify_sizes
from imagenet_rn50.runs.folder import RECIPE, SHARDS_FILE, RunFolder
from imagenet_rn50.runs.metrics import FILE_NAME as METRICS

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


def take_snapshot(run: RunFolder) -> Snapshot:
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


def clear_staging(run: RunFolder) -> None:
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
