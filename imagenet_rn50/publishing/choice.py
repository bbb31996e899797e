"""Which weights of a run are exported: best or last, averaged or raw, and by which figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from imagenet_rn50.console import say
from imagenet_rn50.errors import InputError
from imagenet_rn50.runs.checkpoints import EMA_WEIGHTS, Checkpoint, checkpoint_folders, verify
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

    Args:
        run: The run.
        which: The checkpoint with the best validation top-1, or the newest.
        weights: Averaged, raw, or whichever scored better.

    Raises:
        InputError: When no checkpoint is whole, or none has such weights.
    """
    checkpoints = _whole_checkpoints(run)
    validations = _validations(run.path)
    candidates = []
    for checkpoint in checkpoints if which == "best" else checkpoints[-1:]:
        line, record = validations.get(checkpoint.samples_seen, (None, {}))
        kinds: list[Literal["ema", "raw"]] = ["raw"]
        if (checkpoint.folder / EMA_WEIGHTS).is_file():
            kinds = ["ema", "raw"] if weights == "auto" else [weights]
        elif weights == "ema":
            kinds = []
        for kind in kinds:
            top1 = record.get(f"{_PREFIX[kind]}top1")
            line = line if top1 is not None else None
            candidates.append(Choice(checkpoint, which, kind, line, top1))
    if not candidates:
        raise InputError(
            f"{run.path} holds no averaged weights",
            expected=f"a checkpoint with {EMA_WEIGHTS}, which ema_decay in the recipe makes",
            fix="export with --weights raw",
        )
    # Of equal ones the oldest, as training names its best; averaged before raw.
    return max(candidates, key=lambda choice: -1.0 if choice.top1 is None else choice.top1)


def _whole_checkpoints(run: RunFolder) -> list[Checkpoint]:
    """Returns the checkpoints that are what their manifests say, oldest first.

    Raises:
        InputError: When there is none.
    """
    whole = []
    folders = checkpoint_folders(run.checkpoints)
    for folder in folders:
        try:
            whole.append(verify(folder))
        except InputError as error:
            say(f"passing over a damaged checkpoint: {error}")
    if not whole:
        raise InputError(
            f"{run.path} holds no checkpoint",
            expected="at least one epoch of training",
            found=f"{len(folders)} damaged" if folders else None,
            fix="train first, with the same --run",
        )
    return whole


def _validations(run: Path) -> dict[int, tuple[int, dict[str, Any]]]:
    """Returns number and content of the validation lines, by the progress that they speak of."""
    return {
        record["samples_seen"]: (number, record)
        for number, record in enumerate(read_metrics(run), start=1)
        if record["kind"] == VALIDATION
    }
