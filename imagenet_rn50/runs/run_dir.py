"""The run directory: all files of one run, and the check that no two runs share one.

RUN/
  recipe.yaml       the resolved recipe, defaults included
  shards.json       the shards: name and fingerprint, how they were packed, and
                    which of their splits are ImageNet-1k's
  classes.json      the classes, so that a model can be exported without the shards
  metrics.jsonl     all metrics; see metrics.py
  logs.md  plots/   made from metrics.jsonl
  tensorboard/      written by Accelerate's tracker
  checkpoints/      see checkpoint.py
"""

from __future__ import annotations

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
    lock_file,
    make_folder,
    read_json,
    write_json,
    write_text,
)

RECIPE = "recipe.yaml"
SHARDS_FILE = "shards.json"
_LOCK_TIMEOUT_S = 60


@dataclass(frozen=True)
class RunDir:
    """The directory of one run.

    Args:
        path: Its path.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / "checkpoints"

    def recipe(self) -> Recipe:
        """Return the recipe of the run.

        Raises:
            InputError: If the directory does not hold a run.
        """
        if not (self.path / RECIPE).is_file():
            raise InputError(
                f"{self.path} holds no run",
                expected=f"a run directory with {RECIPE}, made by train_accelerate.py",
                found="no such file" if self.path.is_dir() else "no such directory",
            )
        return load_recipe(str(self.path / RECIPE))

    def classes(self) -> Classes:
        """Return the classes of the run's model."""
        return Classes.load(self.path)

    def check(self, recipe: Recipe, shards: Path, allowed: tuple[str, ...] = ()) -> None:
        """Check that a run of `recipe` over `shards` may start or resume here; write nothing.

        Args:
            recipe: Hyperparameters.
            shards: Folder of the shards' manifest.
            allowed: What may differ, as given to --allow-change.

        Raises:
            InputError: If the directory holds a run of another recipe, a run over other shards, or
                files that are not a run.
        """
        if not (self.path / RECIPE).is_file():
            if self.path.is_dir() and any(map(_is_foreign, self.path.iterdir())):
                raise InputError(
                    f"{self.path} is not a run directory",
                    expected="a new or empty directory, or one with a run in it",
                    found=f"{sum(1 for _ in self.path.iterdir())} entries and no {RECIPE}",
                    fix="choose another --run",
                )
            return
        check_compatible(
            changes_of_recipe(self.recipe(), recipe),
            allowed,
            subject=f"{self.path} already holds a run of another recipe",
        )
        there, fingerprint = read_json(self.path / SHARDS_FILE), Manifest.fingerprint_of(shards)
        if there["fingerprint"] != fingerprint and SHARDS not in allowed:
            raise InputError(
                f"{self.path} holds a run over other shards",
                expected=f"the shards of {there['dataset']} with fingerprint "
                f"{there['fingerprint'][:12]}",
                found=f"fingerprint {fingerprint[:12]} in {shards}",
                fix=f"pass those shards, choose another --run, or add --allow-change {SHARDS}",
            )

    def create(self, recipe: Recipe, shards: Path, dataset: str, classes: Classes) -> None:
        """Write what identifies a run, if it is new or was allowed to change.

        `recipe.yaml` is written last: it makes the directory a run.
        """
        is_run = (self.path / RECIPE).is_file()
        options = Manifest.options_of(shards)
        identity = {
            "dataset": dataset,
            "imagenet1k_splits": complete_splits(classes, Manifest.num_samples_of(shards), options),
            "fingerprint": Manifest.fingerprint_of(shards),
            "options": options,
        }
        if is_run and self.recipe() == recipe and read_json(self.path / SHARDS_FILE) == identity:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        classes.save(self.path)
        write_json(self.path / SHARDS_FILE, identity)
        write_text(self.path / RECIPE, recipe.to_yaml())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let no other process train in this directory while the body runs.

        Waits up to a minute for a process that is still saving after a signal. Creates the
        directory, and removes it if it is still empty at the end.

        Raises:
            InputError: If another process keeps training there, or the directory is not writable.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is not a directory", fix="choose another --run")
        make_folder(self.path, fix="choose another --run")
        waiting = f"another process is training in {self.path}; waiting for it to exit"
        with lock_file(self.path, timeout=_LOCK_TIMEOUT_S, waiting=waiting) as is_locked:
            if not is_locked:
                raise InputError(
                    f"another process is training in {self.path}",
                    expected="one training process per run directory",
                    found=f"its lock is still held after {_LOCK_TIMEOUT_S} s",
                    fix="stop that process, or choose another --run",
                )
            try:
                yield
            finally:
                if not any(self.path.iterdir()):
                    self.path.rmdir()


def _is_foreign(path: Path) -> bool:
    """Return whether a new run must not be created beside this file."""
    is_unfinished = path.name in {SHARDS_FILE, CLASSES_FILE} or path.name.endswith(TEMPORARY_SUFFIX)
    is_lr_finder = path.name.startswith("lr_finder.")  # often run before training
    return not is_unfinished and not is_lr_finder
