"""Checkpoints on disk: verify, commit, prune, and select one to evaluate or export.

    RUN/checkpoints/samples-000001437/
      checkpoint.json        progress, metadata, bytes and sha256 of each file, and the sha256 of
                             all this: no bit of any file can change unnoticed
      model.safetensors ...  the files; see training/state.py

No file of a checkpoint is interpreted before its hash is verified. A damaged checkpoint is named,
and the one before it used.
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
SCORE = "score"  # in a checkpoint's metadata, if it was validated: what selects the best


@dataclass(frozen=True)
class Checkpoint:
    """An intact checkpoint.

    Attributes:
        folder: Its directory.
        samples_seen: Training samples that the run had seen.
        is_best: Whether it had the best score of the run's checkpoints when it was saved.
        metadata: What else its manifest holds on the run that saved it.
        files: Bytes and sha256 of each file.
        digest: SHA-256 of its manifest, and so of the whole checkpoint.
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
        """Return the content of a file, verified as it is read.

        Raises:
            RankError: If the file is missing or damaged, which other ranks may not see.
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
    """Return the directory name of the checkpoint at `samples_seen`."""
    return f"samples-{samples_seen:09d}"


def samples_of(folder: Path) -> int:
    """Return the `samples_seen` in a checkpoint's name."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """Return the directories that have a checkpoint's name, oldest first."""
    if not checkpoints.is_dir():
        return []
    named = [path for path in checkpoints.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(named, key=lambda path: (samples_of(path), path.suffix != _REPLACED_SUFFIX))


def newest_checkpoint(checkpoints: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint, or None; log the damaged ones that are newer.

    Args:
        checkpoints: The run's directory of checkpoints.
    """
    for folder in reversed(checkpoint_folders(checkpoints)):
        try:
            return verify(folder)
        except InputError as error:
            logger.info(f"skipping a damaged checkpoint: {error}")
    return None


def best_score(checkpoints: Path) -> float:
    """Return the best score of the checkpoints on disk; -1 without any."""
    return max((_score(checkpoint) for checkpoint in _complete(checkpoints)), default=-1.0)


def verify(folder: Path) -> Checkpoint:
    """Verify every file of a checkpoint against its manifest.

    Args:
        folder: The checkpoint.

    Raises:
        InputError: If the manifest is damaged, a file is missing, or its size or hash differs.
    """
    checkpoint = verify_sizes(folder)
    for name, expected in checkpoint.files.items():
        if sha256_of_file(folder / name) != expected["sha256"]:
            raise InputError(f"{folder / name} is damaged", expected=f"sha256 {expected['sha256']}")
    return checkpoint


def verify_sizes(folder: Path) -> Checkpoint:
    """Verify a checkpoint's manifest and file sizes, without reading the files.

    Args:
        folder: The checkpoint.

    Raises:
        InputError: If the manifest is damaged, a file is missing, or its size differs.
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
    """Turn a directory of files into a checkpoint, atomically: fsync, write the manifest, rename.

    Args:
        temporary: The directory as it was written.
        final: The checkpoint. An older one of that name is kept until this one is complete.
        samples_seen: Training samples that the run has seen.
        is_best: Whether its score is the best of the checkpoints on disk.
        metadata: What else identifies the run and its state; JSON.
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
    """Remove all checkpoints but the newest and the best.

    Args:
        checkpoints: The run's directory of checkpoints; the newest is intact.
        keep_last: Number of newest checkpoints to keep.
    """
    candidates = [c for c in _complete(checkpoints) if c.is_best or SCORE in c.metadata]
    best = max(candidates, key=lambda c: (_score(c), c.is_best, c.samples_seen), default=None)
    for folder in checkpoint_folders(checkpoints)[:-keep_last]:
        if best is None or folder != best.folder:
            _remove(folder)


def remove_partial(checkpoints: Path) -> None:
    """Remove checkpoints that a kill left partly written or partly removed."""
    if checkpoints.is_dir():
        for path in checkpoints.glob(f"samples-*{TEMPORARY_SUFFIX}"):
            shutil.rmtree(path)


def quarantine(folder: Path) -> None:
    """Rename a damaged checkpoint, so that it is ignored but not lost."""
    target = folder.with_name(folder.name + DAMAGED_SUFFIX)
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)


def _read_manifest(folder: Path) -> Checkpoint:
    """Read the manifest of a checkpoint.

    Raises:
        InputError: If it is missing, or any byte of it is damaged.
    """
    path = folder / MANIFEST
    content = read_json(path)
    try:
        digest = content.pop("sha256")
        text, expected = _rendered(content)
        is_intact = digest == expected and path.read_bytes() == text.encode()
        is_valid = all(_is_entry(name, entry) for name, entry in content["files"].items())
        if is_intact and is_valid:
            return Checkpoint(folder=folder, digest=digest, **content)
    except (AttributeError, KeyError, TypeError):
        pass
    raise InputError(f"{path} is damaged", expected="content that matches its own sha256")


def _is_entry(name: str, entry: dict[str, Any]) -> bool:
    """Return whether an entry of a manifest is valid, and its file inside the checkpoint."""
    return Path(name).name == name and entry.keys() == {"bytes", "sha256"}


def _rendered(content: dict[str, Any]) -> tuple[str, str]:
    """Return a manifest as text that holds its own SHA-256, and the SHA-256."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps(content | {"sha256": digest}, indent=2) + "\n", digest


def _remove(folder: Path) -> None:
    """Remove a checkpoint, if it exists; a kill leaves no part of it under its name."""
    if folder.exists():
        renamed = folder.with_name(folder.name + ".removed" + TEMPORARY_SUFFIX)
        shutil.rmtree(renamed, ignore_errors=True)
        folder.rename(renamed)
        shutil.rmtree(renamed)


def _complete(checkpoints: Path) -> Iterator[Checkpoint]:
    """Yield the checkpoints whose files have the right sizes, oldest first."""
    for folder in checkpoint_folders(checkpoints):
        with suppress(InputError):
            yield verify_sizes(folder)


def _score(checkpoint: Checkpoint) -> float:
    """Return the validation score of a checkpoint; -1 if it was not validated."""
    return float(checkpoint.metadata.get(SCORE, -1.0))


Which = Literal["best", "last"]
Weights = Literal["auto", "ema", "raw"]

_PREFIX = {"raw": "", "ema": "ema_"}  # of the keys of a validation line


@dataclass(frozen=True)
class SelectedWeights:
    """The weights of a run to evaluate or export.

    Attributes:
        checkpoint: The checkpoint that holds them.
        which: Whether the best or the last checkpoint was requested, or it was given.
        kind: `raw`, or `ema` for averaged.
        line: Number of their validation line in metrics.jsonl, from 1; None without one.
        top1: Their top-1 in that line, in [0, 1].
    """

    checkpoint: Checkpoint
    which: Which | Literal["given"]
    kind: Literal["ema", "raw"]
    line: int | None
    top1: float | None

    @property
    def file(self) -> Path:
        """The weights file, safetensors."""
        if self.kind == "ema":
            return self.checkpoint.folder / EMA_WEIGHTS
        return self.checkpoint.weights

    @property
    def prefix(self) -> str:
        """Prefix of the keys of these weights in a validation line."""
        return _PREFIX[self.kind]

    def __str__(self) -> str:
        """Return the checkpoint, the kind of weights, and the accuracy that selected them."""
        kind = "averaged (EMA)" if self.kind == "ema" else "raw"
        name = f"{self.checkpoint.folder.name}, {kind} weights"
        if self.line is None or self.top1 is None:
            return f"{name}, not validated in {FILE_NAME}"
        return f"{name}: top-1 {self.top1:.2%} in line {self.line} of {FILE_NAME}"


def select_checkpoint(run: RunDir, which: Which, weights: Weights) -> SelectedWeights:
    """Select weights of a run by their validation in metrics.jsonl.

    Training skips a damaged checkpoint; here it is an error, since its metrics are quoted.

    Args:
        run: The run directory.
        which: The checkpoint with the best validation top-1, or the newest.
        weights: Averaged, raw, or whichever has the higher top-1.

    Raises:
        InputError: If the run has no checkpoint or no such weights, or the selected one is damaged.
    """
    folders = checkpoint_folders(run.checkpoints)
    if not folders:
        raise InputError(
            f"{run.path} holds no checkpoint",
            expected="at least one epoch of training",
            fix="train first, with the same --run",
        )
    return _selected(run, folders if which == "best" else folders[-1:], which, weights)


def select_weights(folder: Path, weights: Weights) -> SelectedWeights:
    """Select weights of one checkpoint, RUN/checkpoints/samples-...; see `select_checkpoint`."""
    return _selected(RunDir(folder.parent.parent), [folder], "given", weights)


def _selected(
    run: RunDir, folders: list[Path], which: Which | Literal["given"], weights: Weights
) -> SelectedWeights:
    """Select the weights with the highest top-1 of some checkpoints."""
    validations = _validations(run.path)
    candidates: list[tuple[Path, Literal["ema", "raw"], int | None, float | None]] = []
    for folder in folders:
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
            fix="pass --weights raw",
        )
    # Ties: the oldest, as training marks its best, and averaged before raw. Without any
    # validation: the newest.
    folder, kind, line, top1 = max(
        candidates, key=lambda c: (-1.0, samples_of(c[0])) if c[3] is None else (c[3], 0)
    )
    return SelectedWeights(_verify_selected(folder, which), which, kind, line, top1)


def _verify_selected(folder: Path, which: Which | Literal["given"]) -> Checkpoint:
    if which == "given":
        return verify(folder)
    try:
        return verify(folder)
    except InputError as error:
        other = "last" if which == "best" else "best"
        raise InputError(
            f"the {which} checkpoint, {folder}, is damaged: {error}",
            fix=f"restore the file, or pass --checkpoint {other}",
        ) from None


def _validations(run: Path) -> dict[int, tuple[int, dict[str, Any]]]:
    """Return number and content of each validation line, by its `samples_seen`."""
    return {
        record["samples_seen"]: (number, record)
        for number, record in enumerate(read_metrics(run), start=1)
        if record["kind"] == VALIDATION
    }
