"""Checkpoints on disk: folders that are what their manifest says.

RUN/checkpoints/samples-000001437/
checkpoint.json             progress and what else identifies it, each file's bytes and sha256, and
                            the sha256 of all that: no bit of any file can change unnoticed
model.safetensors  optimizer.bin ...

Nothing in a checkpoint is interpreted before its hash is found to be right. What says so may be
damaged too: then the checkpoint is named, and the one before it taken.

Which weights of a run are evaluated and exported: best or last, averaged or raw, and why.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from imagenet_rn50.runs.metrics import FILE_NAME, VALIDATION, read_metrics
from imagenet_rn50.runs.run_dir import RunDir
from imagenet_rn50.utils.errors import InputError, RankError
from imagenet_rn50.utils.files import (
    TEMPORARY_SUFFIX,
    read_json,
    sha256_of_file,
    sync_folder,
    write_text,
)
from imagenet_rn50.utils.logging import logger

MANIFEST = "checkpoint.json"
WEIGHTS = "model.safetensors"
EMA_WEIGHTS = "ema.safetensors"
DAMAGED_SUFFIX = ".damaged"
_REPLACED_SUFFIX = ".replaced"
_NAME = re.compile(rf"samples-(\d{{9,}})({re.escape(_REPLACED_SUFFIX)})?")
KEEP_LAST = 2
SCORE = "score"  # among a checkpoint's metadata: what the best is chosen by, where it was validated


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found to be whole.

    Attributes:
        folder: Where it is.
        samples_seen: How far the run was.
        is_best: Whether its score was the best of its run's checkpoints when it was saved.
        metadata: What else its manifest tells of the run that saved it.
        files: Bytes and sha256 of each file.
        digest: SHA-256 of its manifest, which is that of the whole checkpoint.
    """

    folder: Path
    samples_seen: int
    is_best: bool
    metadata: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    digest: str = ""

    @property
    def weights(self) -> Path:
        """The model's weights, safetensors."""
        return self.folder / WEIGHTS

    def read(self, name: str) -> bytes:
        """Returns a file's content, which is what the manifest says at this very moment.

        Raises:
            RankError: When the file is missing or damaged, maybe where this rank reads alone.
        """
        path, expected = self.folder / name, self.files.get(name)
        if expected is None:
            raise RankError(f"{self.folder} holds no {name}", found=", ".join(self.files))
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise RankError(f"{path} is missing", expected=f"{expected['bytes']} bytes") from None
        if hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise RankError(f"{path} is damaged", expected=f"sha256 {expected['sha256']}")
        return content


def folder_name(samples_seen: int) -> str:
    """Returns the name of the checkpoint of that progress."""
    return f"samples-{samples_seen:09d}"


def samples_of(folder: Path) -> int:
    """Returns the progress that a checkpoint's name tells."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """Returns the folders that are named as checkpoints are, oldest first; others are ignored."""
    if not checkpoints.is_dir():
        return []
    named = [path for path in checkpoints.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(named, key=lambda path: (samples_of(path), path.suffix != _REPLACED_SUFFIX))


def newest_checkpoint(checkpoints: Path) -> Checkpoint | None:
    """Returns the newest whole checkpoint, naming damaged ones that are newer.

    Args:
        checkpoints: The run's folder of checkpoints.

    Returns:
        A verified checkpoint, or None when there is none.
    """
    for folder in reversed(checkpoint_folders(checkpoints)):
        try:
            return verify(folder)
        except InputError as error:
            logger.info(f"skipping a damaged checkpoint: {error}")
    return None


def best_score(checkpoints: Path) -> float:
    """Returns the score to beat: the best that a checkpoint here tells; -1 where none tells any."""
    return max((_score(checkpoint) for checkpoint in _seemingly_whole(checkpoints)), default=-1.0)


def verify(folder: Path) -> Checkpoint:
    """Compares a checkpoint with its manifest.

    Args:
        folder: A checkpoint.

    Raises:
        InputError: When a file is missing, or its size or hash differs.
    """
    checkpoint = verify_sizes(folder)
    for name, expected in checkpoint.files.items():
        if sha256_of_file(folder / name) != expected["sha256"]:
            raise InputError(f"{folder / name} is damaged", expected=f"sha256 {expected['sha256']}")
    return checkpoint


def verify_sizes(folder: Path) -> Checkpoint:
    """Compares a checkpoint with its manifest as far as takes no time: no file is read.

    Args:
        folder: A checkpoint.

    Raises:
        InputError: When the manifest is damaged, a file is missing, or its size differs.
    """
    checkpoint = _read_manifest(folder)
    for name, expected in checkpoint.files.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing", expected=f"{expected['bytes']} bytes")
        if path.stat().st_size != expected["bytes"]:
            raise InputError(f"{path} is damaged", expected=f"sha256 {expected['sha256']}")
    return checkpoint


def commit(
    temporary: Path, final: Path, samples_seen: int, *, is_best: bool, metadata: dict[str, Any]
) -> Checkpoint:
    """Makes a checkpoint of a folder of files: syncs them, writes the manifest, renames.

    Args:
        temporary: The folder as it was written.
        final: The checkpoint's name; one that stood there stands until this one does.
        samples_seen: How far the run is.
        is_best: Whether its score is the best of those of the checkpoints that are there.
        metadata: What else identifies the run and where it stands; JSON.
    """
    files = {}
    for path in sorted(path for path in temporary.iterdir() if path.name != MANIFEST):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    content = {
        "samples_seen": samples_seen,
        "is_best": is_best,
        "metadata": metadata,
        "files": files,
    }
    text, digest = _rendered(content)
    write_text(temporary / MANIFEST, text)
    sync_folder(temporary)
    replaced = final.with_name(final.name + _REPLACED_SUFFIX)
    if final.exists():
        _remove(replaced)
        final.rename(replaced)
    temporary.rename(final)
    sync_folder(final.parent)
    _remove(replaced)
    return Checkpoint(final, samples_seen, is_best, metadata, files, digest)


def prune(checkpoints: Path, keep_last: int = KEEP_LAST) -> None:
    """Removes all but the newest checkpoints and the best of those that seem whole.

    Args:
        checkpoints: The run's folder of checkpoints; its newest is whole.
        keep_last: How many of the newest stay.
    """
    candidates = [c for c in _seemingly_whole(checkpoints) if c.is_best or SCORE in c.metadata]
    best = max(candidates, key=lambda c: (_score(c), c.is_best, c.samples_seen), default=None)
    for folder in checkpoint_folders(checkpoints)[:-keep_last]:
        if best is None or folder != best.folder:
            _remove(folder)


def remove_partial(checkpoints: Path) -> None:
    """Removes what a kill left half written or half removed."""
    if checkpoints.is_dir():
        for path in checkpoints.glob(f"samples-*{TEMPORARY_SUFFIX}"):
            shutil.rmtree(path)


def quarantine(folder: Path) -> None:
    """Renames a damaged checkpoint, so that it is neither taken nor counted, nor lost."""
    target = folder.with_name(folder.name + DAMAGED_SUFFIX)
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)


def _read_manifest(folder: Path) -> Checkpoint:
    """Reads what a checkpoint says of itself.

    Raises:
        InputError: When it is missing or damaged in any byte.
    """
    path = folder / MANIFEST
    content = read_json(path)
    try:
        digest = content.pop("sha256")
        text, expected = _rendered(content)
        is_whole = digest == expected and path.read_bytes() == text.encode()
        is_sound = all(_is_entry(name, entry) for name, entry in content["files"].items())
        if is_whole and is_sound:
            return Checkpoint(folder=folder, digest=digest, **content)
    except (AttributeError, KeyError, TypeError):
        pass
    raise InputError(f"{path} is damaged", expected="content that fits its own sha256")


def _is_entry(name: str, entry: dict[str, Any]) -> bool:
    """Says whether a manifest's entry names a file of its own folder, and tells what it must."""
    return Path(name).name == name and entry.keys() == {"bytes", "sha256"}


def _rendered(content: dict[str, Any]) -> tuple[str, str]:
    """Returns a manifest as text that holds its own SHA-256, and that."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps(content | {"sha256": digest}, indent=2) + "\n", digest


def _remove(folder: Path) -> None:
    """Removes a checkpoint, if it is there, so that a kill leaves no half of it under its name."""
    if folder.exists():
        doomed = folder.with_name(folder.name + ".removed" + TEMPORARY_SUFFIX)
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _seemingly_whole(checkpoints: Path) -> Iterator[Checkpoint]:
    """Yields the checkpoints whose files have their sizes, oldest first."""
    for folder in checkpoint_folders(checkpoints):
        with suppress(InputError):
            yield verify_sizes(folder)


def _score(checkpoint: Checkpoint) -> float:
    """Returns what validation said of a checkpoint; -1 where none did."""
    return float(checkpoint.metadata.get(SCORE, -1.0))


Which = Literal["best", "last"]
Weights = Literal["auto", "ema", "raw"]

_PREFIX = {"raw": "", "ema": "ema_"}  # of the keys in a validation line


@dataclass(frozen=True)
class SelectedWeights:
    """Weights of a run.

    Attributes:
        checkpoint: Where they stand.
        which: Whether the best checkpoint was asked for, or the last.
        kind: `raw`, or `ema` for averaged.
        line: Number of the line of metrics.jsonl that validated them, from 1; None where none did.
        top1: What it says of them, in [0, 1].
    """

    checkpoint: Checkpoint
    which: Which
    kind: Literal["ema", "raw"]
    line: int | None
    top1: float | None

    @property
    def file(self) -> Path:
        """The weights, safetensors."""
        if self.kind == "ema":
            return self.checkpoint.folder / EMA_WEIGHTS
        return self.checkpoint.weights

    @property
    def prefix(self) -> str:
        """What the keys of these weights begin with in a validation line."""
        return _PREFIX[self.kind]

    def __str__(self) -> str:
        """Says what was chosen, and by which figure."""
        kind = "averaged (EMA)" if self.kind == "ema" else "raw"
        told = f"{self.checkpoint.folder.name}, {kind} weights"
        if self.line is None or self.top1 is None:
            return f"{told}, which {FILE_NAME} has no validation of"
        return f"{told}: top-1 {self.top1:.2%} in line {self.line} of {FILE_NAME}"


def select_checkpoint(run: RunDir, which: Which, weights: Weights) -> SelectedWeights:
    """Chooses weights of a run by what metrics.jsonl says of them.

    Training passes over a damaged checkpoint; here, where its figures are quoted, no other will do.

    Args:
        run: The run.
        which: The checkpoint with the best validation top-1, or the newest.
        weights: Averaged, raw, or whichever scored better.

    Raises:
        InputError: When the run has no checkpoint, no such weights, or the chosen one is damaged.
    """
    folders = checkpoint_folders(run.checkpoints)
    if not folders:
        raise InputError(
            f"{run.path} holds no checkpoint",
            expected="at least one epoch of training",
            fix="train first, with the same --run",
        )
    validations = _validations(run.path)
    candidates: list[tuple[Path, Literal["ema", "raw"], int | None, float | None]] = []
    for folder in folders if which == "best" else folders[-1:]:
        line, record = validations.get(samples_of(folder), (None, {}))
        kinds: list[Literal["ema", "raw"]] = ["raw"] if weights != "ema" else []
        if weights != "raw" and (folder / EMA_WEIGHTS).is_file():
            kinds = ["ema", *kinds]
        for kind in kinds:
            top1 = record.get(f"{_PREFIX[kind]}top1")
            candidates.append((folder, kind, line if top1 is not None else None, top1))
    if not candidates:
        raise InputError(
            f"{run.path} holds no averaged weights",
            expected=f"a checkpoint with {EMA_WEIGHTS}, which ema_decay in the recipe makes",
            fix="give --weights raw",
        )
    # Of equal ones the oldest, as training names its best, and averaged before raw; the newest of
    # those that no validation speaks of.
    folder, kind, line, top1 = max(
        candidates, key=lambda c: (-1.0, samples_of(c[0])) if c[3] is None else (c[3], 0)
    )
    return SelectedWeights(_whole(folder, which), which, kind, line, top1)


def _whole(folder: Path, which: Which) -> Checkpoint:
    """Verifies the one checkpoint that was chosen.

    Raises:
        InputError: When it is damaged.
    """
    try:
        return verify(folder)
    except InputError as error:
        other = "last" if which == "best" else "best"
        raise InputError(
            f"the {which} checkpoint, {folder}, is not whole: {error}",
            fix=f"restore the file, or take the other one with --checkpoint {other}",
        ) from None


def _validations(run: Path) -> dict[int, tuple[int, dict[str, Any]]]:
    """Returns number and content of the validation lines, by the progress that they speak of."""
    return {
        record["samples_seen"]: (number, record)
        for number, record in enumerate(read_metrics(run), start=1)
        if record["kind"] == VALIDATION
    }
