"""metrics.jsonl, the truth about a run, and the journal that writes it.

Each line is one JSON object with a `kind` and the `samples_seen` and `epoch` that it speaks of:

    start        this process began or went on: versions, device, ranks, precision; changes, what
                 was allowed to differ from before; checkpoint, where it went on; init_from, name
                 and sha256 of the weights that it was told to begin with, if any
    train        since the last such line: mean loss, num_images, images_per_second, seconds, and
                 data_wait, the part of them spent waiting for the loader; learning rate, lr;
                 substitutions, this rank's damaged samples that others stood in for, if any;
                 sample_hash, of all sample indices that the run has seen, each at its position;
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
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_text, write_text
from imagenet_rn50.utils.logging import logger
from imagenet_rn50.utils.parsing import parse_json

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
    records = parse_lines(read_text(path), source=str(path))
    return [record for record in records if kind in {None, record["kind"]}]


def parse_lines(text: str, source: str) -> list[dict[str, Any]]:
    """Parses a metrics.jsonl; an unfinished last line, cut by a kill, is left out.

    Args:
        text: Its content.
        source: Where it comes from, for messages.

    Raises:
        InputError: When a line is broken.
    """
    records = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        record = parse_json(line, f"line {number} of {source}")
        if not isinstance(record, dict) or "kind" not in record:
            raise InputError(f"line {number} of {source} is no record", expected='{"kind": ...}')
        records.append(record)
    return records


def score(validation: dict[str, Any]) -> float:
    """Returns what the best is chosen by: top-1 of the averaged weights, where there are any."""
    return float(validation.get("ema_top1", validation["top1"]))


class MetricsLogger:
    """Appends to a run's metrics.jsonl, on the rank that logs; elsewhere it writes nothing.

    A full disk does not stop training: lines that could not be written are kept for the next write.

    Args:
        run: The run folder.
        samples_seen: Where the run goes on. Lines of steps after that, which a kill left behind
            and which will now be run again, are removed.
        evaluation_due: Whether it goes on with the evaluation of that very place; what an earlier
            one left behind is removed.
        cost: Returns figures that every line has, from its `samples_seen`.
        enabled: False on the ranks that do not log.
    """

    def __init__(
        self,
        run: Path,
        samples_seen: int,
        *,
        evaluation_due: bool = False,
        cost: Callable[[int], dict[str, float]] = lambda samples_seen: {},
        enabled: bool = True,
    ) -> None:
        self._enabled = enabled
        self._cost = cost
        self._best = -1.0
        self._unwritten = b""
        self._failing: set[str] = set()
        self._lock = threading.Lock()
        if not enabled:
            return
        path = run / FILE_NAME
        if path.is_file():
            lines = [r for r in read_metrics(run) if r["samples_seen"] <= samples_seen]
            kept = [
                line
                for line in lines
                if not (evaluation_due and _is_validation_at(line, samples_seen))
            ]
            text = "".join(json.dumps(record) + "\n" for record in kept)
            if text.encode() != path.read_bytes():
                write_text(path, text)
            self._best = max((score(r) for r in kept if r["kind"] == VALIDATION), default=-1.0)
        self._file = path.open("ab", buffering=0)

    def write(self, kind: str, samples_seen: int, epoch: float, /, **values: Any) -> dict[str, Any]:
        """Append one line, at once, and return it."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"kind": kind, "samples_seen": samples_seen, "epoch": epoch, "time": now}
        record |= values | self._cost(samples_seen)
        if kind == VALIDATION:
            self._best = max(self._best, score(record))
        if not self._enabled:
            return record
        with self._lock:
            self._unwritten += json.dumps(record).encode() + b"\n"
            self._write_out()
        return record

    def sync(self) -> None:
        """Brings all lines to the disk; may be called from another thread.

        Raises:
            OSError: When they find no room there.
        """
        with self._lock:
            self._write_out()
            if self._unwritten:
                raise OSError(f"{FILE_NAME} cannot be written")
        os.fsync(self._file.fileno())

    @contextmanager
    def warn_on_oserror(self, name: str) -> Iterator[None]:
        """Lets the body fail to write, and says so once until it succeeds.

        Args:
            name: What it writes.
        """
        try:
            yield
        except OSError as error:
            if name not in self._failing:
                logger.info(
                    f"{name} cannot be written: {error}\n  the run goes on and will try again"
                )
            self._failing.add(name)
        else:
            if name in self._failing:
                logger.info(f"{name} is written again")
            self._failing.discard(name)

    def best_score(self) -> float:
        """Returns the best `score` of a validation so far, in [0, 1]; -1 before the first."""
        return self._best

    def close(self) -> None:
        """Brings all lines to the disk, if there is room, and closes metrics.jsonl; once."""
        if not self._enabled or self._file.closed:
            return
        with suppress(OSError):
            self.sync()
        self._file.close()
        if self._unwritten:
            logger.info(f"the last lines of {FILE_NAME} are lost: there is no room for them")

    def _write_out(self) -> None:
        """Appends the lines that wait; what finds no room waits on, a line's rest too."""
        with self.warn_on_oserror(FILE_NAME):
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]


def _is_validation_at(line: dict[str, Any], samples_seen: int) -> bool:
    """Says whether a line is the validation of a place."""
    return bool(line["kind"] == VALIDATION and line["samples_seen"] == samples_seen)
