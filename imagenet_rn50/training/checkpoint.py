"""Checkpoints: Accelerate's state, made safe.

`Accelerator.save_state` writes file by file into its final folder. Here it writes into a temporary
one; when all ranks are done, a manifest with the size and hash of every file is added, everything is
synced, and the folder gets its name by one rename. Only then are older ones pruned. Loading takes
the newest checkpoint that is what its manifest says, and names those that are not.

    RUN/checkpoints/samples-000001437/
      checkpoint.json             progress, files with bytes and sha256
      model.safetensors  optimizer.bin  random_states_0.pkl ...
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from imagenet_rn50.console import say
from imagenet_rn50.errors import InputError
from imagenet_rn50.files import (
    TEMPORARY_SUFFIX,
    read_json,
    require_free_space,
    sha256_of_file,
    sync_folder,
    write_json,
)

MANIFEST = "checkpoint.json"
MODEL = "model.safetensors"
_NAME = re.compile(r"samples-(\d{9,})")
_KEEP_NEWEST = 2


@dataclass(frozen=True)
class Checkpoint:
    """A folder that was found to be whole.

    Args:
        folder: Where it is.
        samples_seen: How far the run was.
        is_best: Whether its validation top-1 was the best of its run when it was saved.
    """

    folder: Path
    samples_seen: int
    is_best: bool = False

    @property
    def weights(self) -> Path:
        """The model's weights, safetensors."""
        return self.folder / MODEL


class Checkpoints:
    """All checkpoints of a run.

    Args:
        folder: The run's `checkpoints/`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, accelerator: Accelerator, samples_seen: int, *, is_best: bool) -> None:
        """Saves the state of all ranks under the name of its progress; every rank calls it.

        Args:
            accelerator: Holds model and optimizer.
            samples_seen: How far the run is.
            is_best: Whether to keep this one, until a better one comes, when older ones are pruned.
        """
        final = self._folder / f"samples-{samples_seen:09d}"
        temporary = final.with_name(final.name + TEMPORARY_SUFFIX)
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            newest = self._sorted()[-1:]
            require_free_space(self._folder, sum(map(_size, newest)), "the next checkpoint")
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _seal(temporary, samples_seen, is_best)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            sync_folder(self._folder)
            self._prune()
        accelerator.wait_for_everyone()

    def newest(self, *, best: bool = False) -> Checkpoint | None:
        """Returns the newest whole checkpoint, naming damaged ones that are newer.

        Args:
            best: Look only at those that were the run's best when they were saved.

        Returns:
            A verified checkpoint, or None when there is none.
        """
        for folder in reversed(self._sorted()):
            try:
                checkpoint = verify(folder)
            except InputError as error:
                say(f"passing over a damaged checkpoint: {error}")
                continue
            if checkpoint.is_best or not best:
                return checkpoint
        return None

    def restore_newest(self, accelerator: Accelerator) -> int:
        """Loads the newest whole checkpoint into what the accelerator prepared.

        Returns:
            Its `samples_seen`; 0, with nothing changed, when there is none. Equal on all ranks.
        """
        found = [self.newest() if accelerator.is_main_process else None]
        broadcast_object_list(found)  # one rank reads and hashes, all load the same
        checkpoint = found[0]
        if checkpoint is None:
            return 0
        accelerator.load_state(str(checkpoint.folder))
        return checkpoint.samples_seen

    def _sorted(self) -> list[Path]:
        """Returns the folders that are named as checkpoints are, oldest first."""
        if not self._folder.is_dir():
            return []
        named = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(named, key=lambda path: int(path.name.split("-")[1]))

    def _prune(self) -> None:
        """Removes all but the newest checkpoints and the best one."""
        best = self._newest_best()
        for folder in self._sorted()[:-_KEEP_NEWEST]:
            if folder != best:
                shutil.rmtree(folder)

    def _newest_best(self) -> Path | None:
        """Returns the checkpoint that says to be the best so far, without reading its files."""
        for folder in reversed(self._sorted()):
            manifest = folder / MANIFEST
            if manifest.is_file() and read_json(manifest)["is_best"]:
                return folder
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


def _seal(folder: Path, samples_seen: int, is_best: bool) -> None:
    """Syncs every file of a new checkpoint and writes the manifest that makes it one."""
    files = {}
    for path in sorted(folder.iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    content = {"samples_seen": samples_seen, "is_best": is_best, "files": files}
    write_json(folder / MANIFEST, content)


def _size(folder: Path) -> int:
    """Returns the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())
