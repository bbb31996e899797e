"""Where a run goes on: the newest whole checkpoint, and the proof that it is this run's.

Nothing is taken up that differs from what is spec for, and nothing is destroyed: a damaged
checkpoint is set aside, and a folder whose checkpoints would be abandoned is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from imagenet_rn50.recipe import Recipe, parse_recipe
from imagenet_rn50.runs.checkpoint import (
    Checkpoint,
    checkpoint_folders,
    folder_name,
    quarantine,
    verify,
)
from imagenet_rn50.runs.compatibility import (
    LEARNING_RATE,
    PRECISION,
    SHARDS,
    Change,
    changes_of_recipe,
    check_compatible,
)
from imagenet_rn50.runs.metrics import CHECKPOINT, read_metrics
from imagenet_rn50.runs.metrics import FILE_NAME as METRICS
from imagenet_rn50.training.config import AUTO, NONE, CheckpointConfig
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.training.schedules import learning_rate
from imagenet_rn50.training.state import PROGRESS
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_json
from imagenet_rn50.utils.logging import logger


@dataclass(frozen=True)
class RunSpec:
    """What a run is spec to be; a checkpoint tells the same of the run that saved it.

    Attributes:
        recipe: Hyperparameters.
        shards: Name of the data set and fingerprint of its manifest.
        samples_per_epoch: Size of the training split.
        mixed_precision: Accelerate's word for it: no, fp16, bf16.
    """

    recipe: Recipe
    shards: dict[str, str]
    samples_per_epoch: int
    mixed_precision: str

    def learning_rate(self, samples_seen: int, num_cuts: int) -> float:
        """Return the rate of the step that follows."""
        progress = Progress.of(self.recipe, self.samples_per_epoch, samples_seen)
        return learning_rate(self.recipe, progress.epoch, num_cuts)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run begins or goes on.

    Attributes:
        checkpoint: What to take up; None at the very beginning.
        origin: Digest of the other run's checkpoint that this run began with, if it did.
        changes: What was allowed to differ.
    """

    checkpoint: Checkpoint | None = None
    origin: str | None = None
    changes: tuple[str, ...] = ()

    @property
    def samples_seen(self) -> int:
        """How far the run is."""
        return self.checkpoint.samples_seen if self.checkpoint else 0

    def as_dict(self) -> dict[str, Any]:
        """Return what a journal's start line says of it."""
        if self.checkpoint is None:
            return {}
        return {"checkpoint": self.checkpoint.folder.name, "changes": list(self.changes)}


def find_resume_point(
    accelerator: Accelerator, checkpoints: Path, config: CheckpointConfig, spec: RunSpec
) -> ResumePoint:
    """Finds where to go on; every rank calls it and gets the same answer.

    Args:
        accelerator: Its main process looks and hashes.
        checkpoints: The run's folder of checkpoints.
        config: What the user wants.
        spec: What the run shall be.

    Raises:
        InputError: When that cannot be, or would not be the same run; on every rank.
    """
    found: list[ResumePoint | InputError | None] = [None]
    if accelerator.is_main_process:
        try:
            found[0] = _find(checkpoints, config, spec)
        except InputError as error:
            found[0] = error
    broadcast_object_list(found)
    if isinstance(found[0], InputError):
        raise found[0]
    assert found[0] is not None
    return found[0]


def _find(checkpoints: Path, config: CheckpointConfig, spec: RunSpec) -> ResumePoint:
    """Finds where to go on, on one rank."""
    whole, damaged = _newest(checkpoints)
    given = config.resume
    if given == NONE:
        _require_none(checkpoints)
        return ResumePoint()
    if given == AUTO and whole is None:
        _require_unsaved(checkpoints)
    checkpoint, origin = whole, whole.metadata.get("origin") if whole else None
    if given != AUTO and whole is not None and origin is not None and not Path(given).is_dir():
        logger.info(
            f"--resume {given} is gone; this run has gone on from there, to {whole.folder.name}"
        )
    elif given != AUTO:
        named = _verified(Path(given))
        if whole is None:
            checkpoint, origin = named, named.digest
        elif named.digest not in {whole.digest, origin}:
            raise InputError(
                f"{checkpoints} holds checkpoints that do not come from {given}",
                expected="a run without checkpoints, or one that began with that one",
                found=f"{whole.folder.name}, which going on from {given} would abandon",
                fix="name another folder with --run, or leave out --resume",
            )
    if checkpoint is None:
        return ResumePoint()
    changes = _changes(checkpoint, spec, config.allow_change)
    for folder in damaged:
        quarantine(folder)
    return ResumePoint(checkpoint, origin, tuple(map(str, changes)))


def _newest(checkpoints: Path) -> tuple[Checkpoint | None, list[Path]]:
    """Return the newest whole checkpoint, and the damaged folders that are newer.

    Raises:
        InputError: When there are checkpoints and all are damaged.
    """
    damaged: list[Path] = []
    for folder in reversed(checkpoint_folders(checkpoints)):
        try:
            return verify(folder), damaged
        except InputError as error:
            logger.info(f"passing over a damaged checkpoint: {error}")
            damaged.append(folder)
    if damaged:
        raise InputError(
            f"every checkpoint in {checkpoints} is damaged",
            expected="a whole one among them",
            found=", ".join(folder.name for folder in damaged),
            fix="begin another run with --run, or move them away and begin anew with "
            f"--resume {NONE}",
        )
    return None, []


def _verified(folder: Path) -> Checkpoint:
    """Verifies a checkpoint that the user named."""
    if not folder.is_dir():
        raise InputError(
            f"--resume {folder}: there is no such folder",
            expected=f"{AUTO}, {NONE}, or the folder of a checkpoint: RUN/checkpoints/samples-...",
        )
    return verify(folder)


def _require_none(checkpoints: Path) -> None:
    """Refuses to begin anew over what is there."""
    folders = checkpoint_folders(checkpoints)
    if folders:
        raise InputError(
            f"--resume none: {checkpoints} holds checkpoints",
            expected="a run folder without any, for a run that begins anew",
            found=", ".join(folder.name for folder in folders),
            fix="name another folder with --run, or move these away",
        )


def _require_unsaved(checkpoints: Path) -> None:
    """Refuses to begin anew where a run was saved and its checkpoints are gone."""
    run = checkpoints.parent
    lines = read_metrics(run, CHECKPOINT) if (run / METRICS).is_file() else []
    saved = [line["samples_seen"] for line in lines if line["failed"] is None]
    if saved:
        raise InputError(
            f"{checkpoints} holds no checkpoint, but {run / METRICS} says that the run was saved",
            expected=f"{folder_name(saved[-1])} or one before it",
            fix="restore the checkpoints, begin another run with --run, or say that this one "
            f"shall begin anew and its metrics be lost: --resume {NONE}",
        )


def _changes(checkpoint: Checkpoint, spec: RunSpec, allowed: tuple[str, ...]) -> list[Change]:
    """Return what differs between a checkpoint's run and what is spec for, if it may.

    Raises:
        InputError: With both values of what may not.
    """
    metadata = _metadata(checkpoint)
    then = parse_recipe(metadata["recipe"], source=f"the recipe in {checkpoint.folder}")
    changes = changes_of_recipe(then, spec.recipe)
    for key, before, now in (
        (SHARDS, metadata["shards"]["fingerprint"], spec.shards["fingerprint"]),
        (PRECISION, metadata["mixed_precision"], spec.mixed_precision),
    ):
        if before != now:
            changes.append(Change(key, before, now))
    subject = f"{checkpoint.folder} was saved by a run that differs from what is spec for"
    check_compatible(changes, allowed, subject=subject)
    num_cuts = read_json(checkpoint.folder / PROGRESS)["plateau"]["num_cuts"]
    rate = spec.learning_rate(checkpoint.samples_seen, num_cuts)
    if math.isclose(rate, metadata["next_lr"], rel_tol=1e-9):
        return changes
    other_rate = Change(LEARNING_RATE, metadata["next_lr"], rate)
    if all(change.key == PRECISION for change in changes):  # nothing that was named explains it
        check_compatible([other_rate], allowed, subject=subject)
    return [*changes, other_rate]


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a checkpoint says of its run.

    Raises:
        InputError: If something is missing.
    """
    needed = {"recipe", "shards", "mixed_precision", "next_lr"}
    missing = needed - checkpoint.metadata.keys()
    if missing or PROGRESS not in checkpoint.files:
        raise InputError(
            f"{checkpoint.folder} does not describe the run that saved it",
            expected=", ".join([*sorted(needed), PROGRESS]),
            found=f"no {', '.join(sorted(missing) or [PROGRESS])}",
        )
    return checkpoint.metadata
