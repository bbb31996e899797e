"""Which weights of a run are evaluated and exported: best or last, averaged or raw, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from imagenet_rn50.errors import InputError
from imagenet_rn50.runs.checkpoints import (
    EMA_WEIGHTS,
    Checkpoint,
    checkpoint_folders,
    samples_of,
    verify,
)
from imagenet_rn50.runs.folder import RunFolder
from imagenet_rn50.runs.metrics import FILE_NAME, VALIDATION, read_metrics

Which = Literal["best", "last"]
Weights = Literal["auto", "ema", "raw"]

_PREFIX = {"raw": "", "ema": "ema_"}  # of the keys in a validation line


@dataclass(frozen=True)
class Choice:
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


def choose(run: RunFolder, which: Which, weights: Weights) -> Choice:
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
    return Choice(_whole(folder, which), which, kind, line, top1)


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
