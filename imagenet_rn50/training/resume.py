"""Find the checkpoint to resume from, and check that it belongs to this run.

A checkpoint of another run is refused, and nothing is destroyed: a damaged checkpoint is
quarantined, and a run directory whose checkpoints would be abandoned is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from imagenet_rn50.learning_rate import learning_rate
from imagenet_rn50.recipe import Recipe, parse_recipe
from imagenet_rn50.runs.checkpoint import (
    Checkpoint,
    checkpoint_folders,
    folder_name,
    newest_checkpoint,
    quarantine,
    samples_of,
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
from imagenet_rn50.runs.run_dir import RECIPE, RunDir
from imagenet_rn50.runs.sync import (
    STAGING,
    RemoteRun,
    open_remote,
    require_outside_runs,
    take_snapshot,
)
from imagenet_rn50.training.config import AUTO, NONE, CheckpointConfig
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.training.state import PROGRESS
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_json
from imagenet_rn50.utils.logging import logger

T = TypeVar("T")


@dataclass(frozen=True)
class RunSpec:
    """What a run is: a checkpoint must agree with it.

    Attributes:
        recipe: Hyperparameters.
        shards: Name of the data set (`dataset`) and `fingerprint` of its manifest.
        samples_per_epoch: Size of the training split.
        mixed_precision: As Accelerate names it: no, fp16 or bf16.
    """

    recipe: Recipe
    shards: dict[str, str]
    samples_per_epoch: int
    mixed_precision: str

    def learning_rate(self, samples_seen: int, num_cuts: int) -> float:
        """Return the learning rate of the step after `samples_seen` samples."""
        progress = Progress.of(self.recipe, self.samples_per_epoch, samples_seen)
        return learning_rate(self.recipe, progress.epoch, num_cuts)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run starts or resumes.

    Attributes:
        checkpoint: The checkpoint to load; None if the run starts from scratch.
        origin: Digest of another run's checkpoint, if this run started from one.
        changes: Differences from the checkpoint that --allow-change permits.
    """

    checkpoint: Checkpoint | None = None
    origin: str | None = None
    changes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of the start line in metrics.jsonl."""
        if self.checkpoint is None:
            return {}
        return {"checkpoint": self.checkpoint.folder.name, "changes": list(self.changes)}


def download_run(
    accelerator: Accelerator, run: RunDir, recipe: Recipe, shards: Path, config: CheckpointConfig
) -> None:
    """Download the run from --sync if it is ahead of the run directory; all ranks call it.

    The main process goes first. On several machines it also uploads a run that is ahead only here,
    so that all resume from the same checkpoint. Then one process of each other machine downloads;
    where machines share the run directory, it finds everything in place.

    Args:
        accelerator: Gives the ranks.
        run: The run directory.
        recipe: Hyperparameters that the run must have.
        shards: Folder of the shards' manifest.
        config: The address, and what may differ.

    Raises:
        InputError: If the address cannot be read or written, holds another run, or overlaps a run
            directory; on all ranks.
    """
    address = config.sync
    if address is None:
        return
    num_machines = sum(gather_object([bool(accelerator.is_local_main_process)]))

    def download_and_compare() -> None:
        require_outside_runs(address, run)
        remote = open_remote(address)
        samples_there = _download(remote, run, recipe, shards, config)
        remote.require_writable()
        newest_here = newest_checkpoint(run.checkpoints) if num_machines > 1 else None
        if newest_here and newest_here.samples_seen > samples_there:
            logger.info(f"uploading {newest_here.folder.name} to {remote.folder.public}")
            snapshot = take_snapshot(run)
            try:
                remote.upload(snapshot)
            finally:
                snapshot.discard()

    on_main_process(accelerator, download_and_compare)
    if accelerator.is_local_main_process and not accelerator.is_main_process:
        _download(open_remote(address), run, recipe, shards, config)
    accelerator.wait_for_everyone()


def _download(
    remote: RemoteRun, run: RunDir, recipe: Recipe, shards: Path, config: CheckpointConfig
) -> int:
    """Download a run if it is ahead; return the samples seen at the address, -1 without a run."""
    is_run = (run.path / RECIPE).is_file()
    is_partial_download = (run.path / STAGING).is_dir() and not is_run
    if not is_partial_download:
        run.check(recipe, shards, config.allow_change)
    files = remote.latest()
    if files is None:
        return -1
    public = remote.folder.public
    if config.resume == NONE:
        raise InputError(
            f"--resume {NONE}: {public} holds a run",
            expected="an address without a run",
            fix="choose another --sync",
        )
    check_compatible(
        changes_of_recipe(remote.recipe(files), recipe),
        config.allow_change,
        subject=f"{public} already holds a run of another recipe",
    )
    names = {file.checkpoint for file in files if file.checkpoint}
    samples_there = max((samples_of(Path(name)) for name in names), default=0)
    newest_here = newest_checkpoint(run.checkpoints)
    if not (is_run and newest_here and newest_here.samples_seen >= samples_there):
        logger.info(f"downloading the run from {public}")
        remote.download(files, run)
    return samples_there


def find_resume_point(
    accelerator: Accelerator, checkpoints: Path, config: CheckpointConfig, spec: RunSpec
) -> ResumePoint:
    """Return where to resume; every rank calls it and gets the same answer.

    Args:
        accelerator: Its main process searches and verifies.
        checkpoints: The run's directory of checkpoints.
        config: Options of the command line.
        spec: What the run must be.

    Raises:
        InputError: If no checkpoint can be resumed, or only as another run; on every rank.
    """
    return on_main_process(accelerator, lambda: _find(checkpoints, config, spec))


def on_main_process(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Return the result of `action` on the main process, or raise its InputError, on every rank."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = action()
        except InputError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def _find(checkpoints: Path, config: CheckpointConfig, spec: RunSpec) -> ResumePoint:
    """Return where to resume; on one rank."""
    newest, damaged = _newest(checkpoints)
    resume = config.resume
    if resume == NONE:
        _require_no_checkpoints(checkpoints)
        return ResumePoint()
    if resume == AUTO and newest is None:
        _require_never_saved(checkpoints)
    checkpoint, origin = newest, newest.metadata.get("origin") if newest else None
    if resume != AUTO and newest is not None and origin is not None and not Path(resume).is_dir():
        logger.info(
            f"--resume {resume} no longer exists; resuming from {newest.folder.name} of this run"
        )
    elif resume != AUTO:
        requested = _verify_requested(Path(resume))
        if newest is None:
            checkpoint, origin = requested, requested.digest
        elif requested.digest not in {newest.digest, origin}:
            raise InputError(
                f"{checkpoints} holds checkpoints that do not descend from {resume}",
                expected="a run without checkpoints, or one that started from that checkpoint",
                found=f"{newest.folder.name}, which would be abandoned",
                fix="choose another --run, or omit --resume",
            )
    if checkpoint is None:
        return ResumePoint()
    changes = _changes(checkpoint, spec, config.allow_change)
    for folder in damaged:
        quarantine(folder)
    return ResumePoint(checkpoint, origin, tuple(map(str, changes)))


def _newest(checkpoints: Path) -> tuple[Checkpoint | None, list[Path]]:
    """Return the newest intact checkpoint, and the damaged ones that are newer.

    Raises:
        InputError: If there are checkpoints and all are damaged.
    """
    damaged: list[Path] = []
    for folder in reversed(checkpoint_folders(checkpoints)):
        try:
            return verify(folder), damaged
        except InputError as error:
            logger.info(f"skipping a damaged checkpoint: {error}")
            damaged.append(folder)
    if damaged:
        raise InputError(
            f"every checkpoint in {checkpoints} is damaged",
            expected="at least one intact checkpoint",
            found=", ".join(folder.name for folder in damaged),
            fix=f"choose another --run; or move them away, and start over with --resume {NONE}",
        )
    return None, []


def _verify_requested(folder: Path) -> Checkpoint:
    if not folder.is_dir():
        raise InputError(
            f"--resume {folder} does not exist",
            expected=f"{AUTO}, {NONE}, or a checkpoint: RUN/checkpoints/samples-...",
        )
    return verify(folder)


def _require_no_checkpoints(checkpoints: Path) -> None:
    folders = checkpoint_folders(checkpoints)
    if folders:
        raise InputError(
            f"--resume {NONE}: {checkpoints} holds checkpoints",
            expected="a run directory without checkpoints",
            found=", ".join(folder.name for folder in folders),
            fix="choose another --run, or move them away",
        )


def _require_never_saved(checkpoints: Path) -> None:
    """Refuse to start over if the run was saved and its checkpoints are gone."""
    run = checkpoints.parent
    lines = read_metrics(run, CHECKPOINT) if (run / METRICS).is_file() else []
    saved = [line["samples_seen"] for line in lines if line["failed"] is None]
    if saved:
        raise InputError(
            f"{checkpoints} holds no checkpoint, but {run / METRICS} records saves",
            expected=f"{folder_name(saved[-1])} or an older one",
            fix="restore the checkpoints, or choose another --run; "
            f"--resume {NONE} starts over and discards the metrics",
        )


def _changes(checkpoint: Checkpoint, spec: RunSpec, allowed: tuple[str, ...]) -> list[Change]:
    """Return the differences between a checkpoint's run and `spec`, all of them allowed.

    Raises:
        InputError: With both values of each difference that is not allowed.
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
    subject = f"{checkpoint.folder} was saved by a run that differs from the requested one"
    check_compatible(changes, allowed, subject=subject)
    num_cuts = read_json(checkpoint.folder / PROGRESS)["plateau"]["num_cuts"]
    rate = spec.learning_rate(checkpoint.samples_seen, num_cuts)
    if math.isclose(rate, metadata["next_lr"], rel_tol=1e-9):
        return changes
    other_rate = Change(LEARNING_RATE, metadata["next_lr"], rate)
    if all(change.key == PRECISION for change in changes):  # no other change explains it
        check_compatible([other_rate], allowed, subject=subject)
    return [*changes, other_rate]


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint's metadata.

    Raises:
        InputError: If a field is missing.
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
