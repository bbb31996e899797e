"""metrics.jsonl, the only source of a run's logs, plots and model card, and its writer.

Each line is a JSON object with a `kind`, and the `samples_seen` and `epoch` that it refers to:

    start        this process started or resumed: versions, device, ranks, precision; changes that
                 --allow-change permitted; checkpoint, if resumed; init_from, name and sha256 of
                 the pretrained weights, if any; trackio_space, that has the run's dashboard, if any
    train        since the last such line: mean loss, num_images, images_per_second, seconds, and
                 data_wait, the fraction of them spent waiting for the loader; learning rate, lr;
                 substitutions, damaged samples that this rank substituted, if any; sample_hash, of
                 all sample indices that the run has seen, each at its position; skipped_steps,
                 whose fp16 gradients overflowed, if any; gpu_gib, on a GPU; tflops, TFLOP/s that
                 the model needed of each device, at the sizes of the images; mfu, the fraction of
                 the device's peak that this is, if the peak is known (peaks.py). Both are of the
                 wall clock of training, data_wait included, as in PaLM's appendix B
    validation   top1 and top5 in [0, 1], loss, num_images, seconds, is_best; the same prefixed with
                 ema_ for averaged weights, if the recipe keeps them
    checkpoint   failed, the reason or null; stall_seconds that training waited for it, seconds
                 until it was on disk, bytes
    stop         reason why this process stopped before the run was finished

With --price-per-hour, each line has cost_usd, the cost of the run so far, preempted work included,
and cost_left_usd, the expected cost of the rest, once this process has trained.
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
    """Return the lines of a run's metrics.jsonl, oldest first.

    Args:
        run: The run directory.
        kind: Only lines of this kind; None for all.

    Raises:
        InputError: If the file does not exist, or a line other than an incomplete last one is
            invalid.
    """
    path = run / FILE_NAME
    if not path.is_file():
        raise InputError(f"{run} holds no metrics", expected=f"{path}, written by training")
    records = parse_lines(read_text(path), source=str(path))
    return [record for record in records if kind in {None, record["kind"]}]


def time_mean(records: list[dict[str, Any]], key: str) -> float | None:
    """Return the mean over time of a value of `train` lines; None if a line lacks it."""
    if not all(key in record for record in records):
        return None
    seconds = sum(record["seconds"] for record in records)
    return float(sum(record[key] * record["seconds"] for record in records) / seconds)


def parse_lines(text: str, source: str) -> list[dict[str, Any]]:
    """Parse metrics.jsonl; an incomplete last line, cut off by a kill, is skipped.

    Args:
        text: Its content.
        source: Its name, for messages.

    Raises:
        InputError: If a line is invalid.
    """
    records = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        record = parse_json(line, f"line {number} of {source}")
        if not isinstance(record, dict) or "kind" not in record:
            raise InputError(f"line {number} of {source} is not a record", expected='{"kind": ...}')
        records.append(record)
    return records


def score(validation: dict[str, Any]) -> float:
    """Return what selects the best checkpoint: top-1, of the averaged weights if there are any."""
    return float(validation.get("ema_top1", validation["top1"]))


class MetricsLogger:
    """Append to a run's metrics.jsonl, on the rank that logs; the others write nothing.

    A full disk does not stop training: lines that could not be written are kept for the next write.

    Args:
        run: The run directory.
        samples_seen: Where the run starts or resumes. Lines of later steps, which are now repeated,
            are removed.
        evaluation_due: Whether the run resumes with the validation at `samples_seen`; an earlier
            line of it is removed.
        cost: Returns values to add to every line, from its `samples_seen`.
        enabled: False on all ranks but one.
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
        """Append one line immediately, and return it."""
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
        """Flush all lines to disk; may be called from another thread.

        Raises:
            OSError: If they cannot be written.
        """
        with self._lock:
            self._write_out()
            if self._unwritten:
                raise OSError(f"{FILE_NAME} cannot be written")
        os.fsync(self._file.fileno())

    @contextmanager
    def warn_on_oserror(self, name: str) -> Iterator[None]:
        """Log an OSError of the body instead of raising it: once, until the body succeeds.

        Args:
            name: What the body writes.
        """
        try:
            yield
        except OSError as error:
            if name not in self._failing:
                logger.info(
                    f"{name} cannot be written: {error}\n  training continues and will retry"
                )
            self._failing.add(name)
        else:
            if name in self._failing:
                logger.info(f"{name} can be written again")
            self._failing.discard(name)

    def best_score(self) -> float:
        """Return the best `score` so far, in [0, 1]; -1 before the first validation."""
        return self._best

    def close(self) -> None:
        """Flush all lines to disk, if possible, and close the file; later calls do nothing."""
        if not self._enabled or self._file.closed:
            return
        with suppress(OSError):
            self.sync()
        self._file.close()
        if self._unwritten:
            logger.info(f"the last lines of {FILE_NAME} are lost: they could not be written")

    def _write_out(self) -> None:
        """Write pending lines; what cannot be written, even part of a line, stays pending."""
        with self.warn_on_oserror(FILE_NAME):
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]


def _is_validation_at(line: dict[str, Any], samples_seen: int) -> bool:
    """Return whether a line is the validation at `samples_seen`."""
    return bool(line["kind"] == VALIDATION and line["samples_seen"] == samples_seen)
