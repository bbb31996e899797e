"""Time limits: when a run must have exited, and whether it has to stop now for that.

`--max-hours`, `--stop-at` and the end of a Slurm job each give a deadline; the earliest counts. One
rank watches it, and requests a stop as a signal does (preemption.py), so that all ranks stop at the
same micro batch.

What has to fit before the deadline is measured: the last save, the last upload, and the longest
wait between two looks at the clock, each three times, because a save may just have begun, other
ranks learn of a request one micro batch later, and disks and networks vary.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import NamedTuple

import psutil

from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.signals import read_int_env

STOP_AT = "--stop-at"
_SLURM_END = "SLURM_JOB_END_TIME"  # seconds since the epoch; set by newer versions of Slurm

_EXIT_SECONDS = 30.0  # for logs, plots and the exit of all processes: a few, on an idle machine
_MARGIN = 3.0
_ASSUMED_BYTES_PER_SECOND = 20e6  # of a save and of an upload, until one was measured


class Deadline(NamedTuple):
    """When a run must have exited.

    Attributes:
        time: Seconds since the epoch.
        source: The option or variable that says so, with its value.
    """

    time: float
    source: str


def find_deadline(max_hours: float | None, stop_at: datetime | None) -> Deadline | None:
    """Return the earliest deadline that options and environment give, or None without any.

    Args:
        max_hours: Hours from the start of this process.
        stop_at: A time; without an offset from UTC, in the time zone of this machine.

    Raises:
        InputError: If a time is in the past, or is none.
    """
    deadlines = []
    if max_hours is not None:
        started = psutil.Process().create_time()
        deadlines.append(Deadline(started + max_hours * 3600, f"--max-hours {max_hours:g}"))
    if stop_at is not None:
        try:
            local = stop_at.astimezone()
        except (OverflowError, ValueError):
            raise InputError(f"{STOP_AT} {stop_at} is out of range") from None
        deadlines.append(Deadline(local.timestamp(), f"{STOP_AT} {local.isoformat()}"))
    if (end := read_int_env(_SLURM_END)) is not None:
        deadlines.append(Deadline(end, f"{_SLURM_END}={end}"))
    for deadline in deadlines:
        if deadline.time <= time.time():
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            raise InputError(
                f"{deadline.source} is in the past",
                expected="a time after now",
                found=f"now, {now}",
                fix=f"unset {_SLURM_END}, if it is of another job"
                if deadline.source.startswith(_SLURM_END)
                else "a later time",
            )
    return min(deadlines, default=None)


class TimeLimit:
    """Decides when a run has to stop, so that it is saved and has exited at its deadline.

    Args:
        deadline: When that is.
        num_bytes: What a save and its upload write, from which their duration is assumed until one
            was measured.

    Raises:
        InputError: If there is no time left to train.
    """

    def __init__(self, deadline: Deadline, num_bytes: int) -> None:
        self._deadline = deadline
        self._assumed = num_bytes / _ASSUMED_BYTES_PER_SECOND
        self._previous = time.monotonic()
        self._first = self._longest = 0.0
        reserve = self._reserve(None)
        if self._seconds_left() <= reserve:
            raise self.too_short(f"{reserve:.0f} s are kept for the save")

    @property
    def reason(self) -> str:
        """The reason to stop, once the time has come."""
        return f"time limit: {self._deadline.source}"

    @property
    def is_spent(self) -> bool:
        """Whether the limit is of this process alone: the same option would refuse to resume."""
        return self._deadline.source.startswith(STOP_AT)

    def describe(self) -> str:
        """Return the limit in words, as of now."""
        return (
            f"{self.reason}, {self._seconds_left() / 3600:.2f} h from now: the run stops in time "
            f"to save, {self._reserve(None):.0f} s before that until a save has been measured"
        )

    def is_reached(self, save_seconds: float | None, ahead: float = 0.0) -> bool:
        """Return whether to stop now; called at each opportunity to stop.

        Args:
            save_seconds: What the last save and its upload took; None if that is not known yet.
            ahead: Time that is lost if the run has to stop before it is over, s.
        """
        now = time.monotonic()
        waited, self._previous = now - self._previous, now
        if self._first:
            self._longest = max(self._longest, waited)
        else:  # workers start, kernels are compiled: not what the others will take
            self._first = waited
        return self._seconds_left() <= self._reserve(save_seconds) + ahead

    def too_short(self, problem: str) -> InputError:
        """Return the error that no step fits into the limit."""
        return InputError(f"{self._deadline.source} is too short: {problem}", fix="a later end")

    def _seconds_left(self) -> float:
        return self._deadline.time - time.time()

    def _reserve(self, save_seconds: float | None) -> float:
        """Return the time for what is left to do after the decision to stop, s."""
        saving = self._assumed if save_seconds is None else save_seconds
        waiting = _MARGIN * self._longest or self._first
        return _EXIT_SECONDS + _MARGIN * saving + waiting
