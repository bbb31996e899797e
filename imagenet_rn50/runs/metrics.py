"""metrics.jsonl, the truth about a run, and the journal that writes it.

Each line is one JSON object with a `kind` and the `samples_seen` and `epoch` that it speaks of:

    start        this process began or went on: versions, device, ranks, precision; changes, what
                 was allowed to differ from before; checkpoint, where it went on; init_from, name
                 and sha256 of the weights that it was told to begin with, if any
    train        since the last such line: mean loss, num_images, images_per_second, seconds, and
                 data_wait, the part of them spent waiting for the loader; learning rate, lr;
                 substitutions, this rank's damaged samples that others stood in for, if any;
                 samples_hash, of all sample indices that the run has seen, each at its position;
                 skipped_steps, whose fp16 gradients overflowed, if any; gpu_gib, on a GPU
    validation   top1 and top5 in [0, 1], loss, num_images, seconds, is_best; the same with ema_
                 in front for averaged weights, where the recipe keeps them
    checkpoint   saved, or failed and why; stall_seconds that training stood still for it, seconds
                 until it was on disk, bytes
    stop         why this process ended before the run did

Where --price-per-hour is given, each line has cost_usd, the money spent so far in the whole run,
work that was lost included, and cost_left_usd, what the rest takes, once this process has trained.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imagenet_rn50.errors import InputError
from imagenet_rn50.files import write_text

FILE_NAME = "metrics.jsonl"
START, TRAIN, VALIDATION = "start", "train", "validation"
CHECKPOINT, STOP = "checkpoint", "stop"


def read_metrics(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics.jsonl, oldest first.

    Args:
        run: The run folder.
        kind: Only lines of this kind; None for all.

    Raises:
        InputError: When there is no such file, or a line but an unfinished last one is broken.
    """
    path = run / FILE_NAME
    if not path.is_file():
        raise InputError(f"{run} holds no metrics", expected=f"{path}, written by training")
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    if text and not text.endswith("\n"):
        lines.pop()  # cut by a kill in the middle of a write
    try:
        records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise InputError(f"{path} has a broken line", found=str(error)) from None
    return [record for record in records if kind in {None, record["kind"]}]


def score(validation: dict[str, Any]) -> float:
    """Returns what the best is chosen by: top-1 of the averaged weights, where there are any."""
    return float(validation.get("ema_top1", validation["top1"]))


class Journal:
    """Writes a run's metrics as they come; a single rank does.

    Args:
        run: The run folder.
        samples_seen: Where the run goes on. Lines of steps after that, which a kill left behind
            and which will now be run again, are removed.
        evaluation_due: Whether it goes on with the evaluation of that very place; what an earlier
            one left behind is removed.
        cost: Returns figures that every line has, from its `samples_seen`.
    """

    def __init__(
        self,
        run: Path,
        samples_seen: int,
        *,
        evaluation_due: bool = False,
        cost: Callable[[int], dict[str, float]] = lambda samples_seen: {},
    ) -> None:
        self._run = run
        self._cost = cost
        path = run / FILE_NAME
        if path.is_file():
            lines = [r for r in read_metrics(run) if r["samples_seen"] <= samples_seen]
            kept = [
                line
                for line in lines
                if not (evaluation_due and _is_validation_at(line, samples_seen))
            ]
            write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, samples_seen: int, epoch: float, /, **values: Any) -> dict[str, Any]:
        """Appends one line, at once, and returns it."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"kind": kind, "samples_seen": samples_seen, "epoch": epoch, "time": now}
        record |= values | self._cost(samples_seen)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        return record

    def sync(self) -> None:
        """Brings all lines to the disk; may be called from another thread."""
        os.fsync(self._file.fileno())

    def best_score(self) -> float:
        """Returns the best `score` of a validation so far, in [0, 1]; -1 before the first."""
        return max((score(line) for line in read_metrics(self._run, VALIDATION)), default=-1.0)

    def close(self) -> None:
        """Closes metrics.jsonl."""
        self._file.close()


def _is_validation_at(line: dict[str, Any], samples_seen: int) -> bool:
    """Says whether a line is the validation of a place."""
    return bool(line["kind"] == VALIDATION and line["samples_seen"] == samples_seen)
