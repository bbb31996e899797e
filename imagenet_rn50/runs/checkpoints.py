"""Checkpoints on disk: folders that are what their manifest says.

RUN/checkpoints/samples-000001437/
checkpoint.json             progress, whether it was the best, files with bytes and sha256
model.safetensors  optimizer.bin  random_states_0.pkl ...
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from imagenet_rn50.console import say
from imagenet_rn50.errors import InputError
from imagenet_rn50.files import read_json, sha256_of_file, sync_folder, write_json

MANIFEST = "checkpoint.json"
_WEIGHTS = "model.safetensors"
EMA_WEIGHTS = "ema.safetensors"
STATE = "state.json"
_NAME = re.compile(r"samples-(\d{9,})")
_KEEP_NEWEST = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found to be whole.

    Attributes:
        folder: Where it is.
        samples_seen: How far the run was.
        is_best: Whether its validation top-1 was the best of its run when it was saved.
    """

    folder: Path
    samples_seen: int
    is_best: bool

    @property
    def weights(self) -> Path:
        """The model's weights, safetensors."""
        return self.folder / _WEIGHTS


def folder_name(samples_seen: int) -> str:
    """Returns the name of the checkpoint of that progress."""
    return f"samples-{samples_seen:09d}"


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """Returns the folders that are named as checkpoints are, oldest first; others are ignored."""
    if not checkpoints.is_dir():
        return []
    named = [path for path in checkpoints.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(named, key=lambda path: int(path.name.split("-")[1]))


def newest_checkpoint(checkpoints: Path, *, best: bool = False) -> Checkpoint | None:
    """Returns the newest whole checkpoint, naming damaged ones that are newer.

    Args:
        checkpoints: The run's folder of checkpoints.
        best: Look only at those that were the run's best when they were saved.

    Returns:
        A verified checkpoint, or None when there is none.
    """
    for folder in reversed(checkpoint_folders(checkpoints)):
        try:
            checkpoint = verify(folder)
        except InputError as error:
            say(f"passing over a damaged checkpoint: {error}")
            continue
        if checkpoint.is_best or not best:
            return checkpoint
    return None


def verify(folder: Path) -> Checkpoint:
    """Compares a checkpoint with its manifest.

    Args:
        folder: A checkpoint.

    Raises:
        InputError: When a file is missing, or its size or hash differs.
    """
    manifest = read_json(folder / MANIFEST)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing", expected=f"{expected['bytes']} bytes")
        if path.stat().st_size != expected["bytes"] or sha256_of_file(path) != expected["sha256"]:
            raise InputError(f"{path} is damaged", expected=f"sha256 {expected['sha256']}")
    return Checkpoint(folder, manifest["samples_seen"], manifest["is_best"])


def seal(temporary: Path, final: Path, samples_seen: int, *, is_best: bool) -> None:
    """Makes a checkpoint of a folder of files: syncs them, writes the manifest, renames.

    Args:
        temporary: The folder as it was written.
        final: The checkpoint's name; what stood there is replaced.
        samples_seen: How far the run is.
        is_best: Whether its validation top-1 is the best of the run so far.
    """
    files = {}
    for path in sorted(temporary.iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    content = {"samples_seen": samples_seen, "is_best": is_best, "files": files}
    write_json(temporary / MANIFEST, content)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    sync_folder(final.parent)


def prune(checkpoints: Path) -> None:
    """Removes all but the two newest checkpoints and the newest that was the best."""
    folders = checkpoint_folders(checkpoints)
    best = [folder for folder in folders if _says_best(folder)][-1:]
    for folder in folders[:-_KEEP_NEWEST]:
        if folder not in best:
            shutil.rmtree(folder)


def _says_best(folder: Path) -> bool:
    """Returns what the manifest says, without reading the files that it lists."""
    manifest = folder / MANIFEST
    return manifest.is_file() and bool(read_json(manifest)["is_best"])
