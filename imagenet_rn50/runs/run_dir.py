"""The run folder: everything that one run leaves behind, and the guard against mixing two runs.

RUN/
  recipe.yaml           the recipe as resolved, defaults included
  shards.json           which shards: name and digest of their manifest, how they were packed, and
                        which of their splits are ImageNet-1k's
  classes.json          the classes, so that a model can be exported without the shards
  metrics.jsonl         the truth; see journal
  logs.md  plots/       made from it
  tensorboard/          what Accelerate's tracker wrote
  checkpoints/          see checkpoint
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imagenet_rn50.classes import FILE_NAME as CLASSES_FILE
from imagenet_rn50.classes import Classes
from imagenet_rn50.recipe import Recipe, load_recipe
from imagenet_rn50.runs.compatibility import SHARDS, changes_of_recipe, check_compatible
from imagenet_rn50.shards.imagenet1k import complete_splits
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import (
    TEMPORARY_SUFFIX,
    make_folder,
    read_json,
    write_json,
    write_text,
)
from imagenet_rn50.utils.logging import logger

RECIPE = "recipe.yaml"
SHARDS_FILE = "shards.json"
_WAIT_FOR_LOCK_S = 60


def _is_foreign(path: Path) -> bool:
    """Says whether a file makes a folder something else than one that a run may begin in."""
    is_unfinished = path.name in {SHARDS_FILE, CLASSES_FILE} or path.name.endswith(TEMPORARY_SUFFIX)
    is_before = path.name.startswith("lr_finder.")  # which one looks for before the run
    return not is_unfinished and not is_before


@dataclass(frozen=True)
class RunDir:
    """A folder that holds one run.

    Args:
        path: Where it is.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def recipe(self) -> Recipe:
        """Returns the recipe of the run.

        Raises:
            InputError: When the folder does not hold a run.
        """
        if not (self.path / RECIPE).is_file():
            raise InputError(
                f"{self.path} holds no run",
                expected=f"a folder with {RECIPE}, made by train_accelerate.py",
                found="no such file" if self.path.is_dir() else "no such folder",
            )
        return load_recipe(str(self.path / RECIPE))

    def classes(self) -> Classes:
        """Returns the classes that the run's model tells apart."""
        return Classes.load(self.path)

    def check(self, recipe: Recipe, shards: Path, allowed: tuple[str, ...] = ()) -> None:
        """Makes sure that a run of `recipe` over `shards` may begin or go on here; writes nothing.

        Args:
            recipe: Hyperparameters.
            shards: Folder of the shards' manifest.
            allowed: What may have changed, as --allow-change names it.

        Raises:
            InputError: When the folder holds another recipe's run, a run over other shards, or
                files that are no run.
        """
        if not (self.path / RECIPE).is_file():
            if self.path.is_dir() and any(map(_is_foreign, self.path.iterdir())):
                raise InputError(
                    f"{self.path} is not a run folder",
                    expected="a new or empty folder, or one with a run in it",
                    found=f"{sum(1 for _ in self.path.iterdir())} entries and no {RECIPE}",
                    fix="name another folder with --run",
                )
            return
        check_compatible(
            changes_of_recipe(self.recipe(), recipe),
            allowed,
            subject=f"{self.path} already holds the run of another recipe",
        )
        there, digest = read_json(self.path / SHARDS_FILE), Manifest.digest_of(shards)
        if there["digest"] != digest and SHARDS not in allowed:
            raise InputError(
                f"{self.path} holds a run over other shards",
                expected=f"the shards of {there['dataset']} with digest {there['digest'][:12]}",
                found=f"digest {digest[:12]} in {shards}",
                fix="name those shards, or another folder with --run, or say that you mean it: "
                f"--allow-change {SHARDS}",
            )

    def create(self, recipe: Recipe, shards: Path, dataset: str, classes: Classes) -> None:
        """Writes what identifies a run, where it is not written yet or was allowed to change.

        A folder that was made before shards.json told all this of the shards learns it here.
        `recipe.yaml` comes last and makes it a run.
        """
        is_run = (self.path / RECIPE).is_file()
        packed = {"digest": Manifest.digest_of(shards), "options": Manifest.options_of(shards)}
        complete = complete_splits(classes, Manifest.num_samples_of(shards))
        identity = {"dataset": dataset, "imagenet1k_splits": complete, **packed}
        if is_run and self.recipe() == recipe and read_json(self.path / SHARDS_FILE) == identity:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        classes.save(self.path)
        write_json(self.path / SHARDS_FILE, identity)
        write_text(self.path / RECIPE, recipe.to_yaml())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Makes this process the only one that trains in the folder while the body runs.

        The lock ends with the process, however it ends. One that is just saving after a signal is
        waited for, a minute at most. The folder is made, and removed if nothing comes into it.

        Raises:
            InputError: When another process trains there and does not end, or it cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder", fix="name another one with --run")
        make_folder(self.path, fix="name another one with --run")
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            _lock(descriptor, self.path)
            yield
        finally:
            os.close(descriptor)
            if not any(self.path.iterdir()):
                self.path.rmdir()


def _lock(descriptor: int, path: Path) -> None:
    """Takes the lock of a folder, waiting for who holds it."""
    for second in range(_WAIT_FOR_LOCK_S + 1):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if second == 0:
                logger.info(f"another process trains in {path}; waiting until it has ended")
            time.sleep(1)
        except OSError as error:  # a network file system without locks
            logger.info(f"{path} cannot be locked ({error}): start no other training there")
            return
        else:
            return
    raise InputError(
        f"another process trains in {path}",
        expected="one training process a run folder",
        found=f"its lock still held after {_WAIT_FOR_LOCK_S} s",
        fix="stop that process, or name another folder with --run",
    )
