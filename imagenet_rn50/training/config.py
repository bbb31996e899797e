"""How a run is checkpointed, resumed and stopped. Nothing in it changes what is learned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, TypeAlias

import tyro

from imagenet_rn50.runs.checkpoint import KEEP_LAST
from imagenet_rn50.runs.compatibility import check_names
from imagenet_rn50.utils.errors import InputError, require_positive

AUTO, NONE = "auto", "none"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)

Spot: TypeAlias = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class CheckpointConfig:
    """How a run is checkpointed, resumed and stopped."""

    resume: str = AUTO
    """auto: resume from the newest intact checkpoint, or start if the run was never saved. none:
    start, and refuse a run directory that holds checkpoints. Or the directory of a checkpoint, of
    this run or another, to resume from."""
    allow_change: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What may differ from the checkpoint: a field of the recipe (optimizer.lr), shards, or
    mixed_precision. May be repeated."""
    checkpoint_minutes: float | None = 15.0
    """Minutes between checkpoints, besides the one after each epoch; None disables them."""
    checkpoint_steps: int | None = None
    """Optimizer steps between checkpoints."""
    keep_last: int = KEEP_LAST
    """Number of newest checkpoints to keep, besides the best."""
    stop_at_step: int | None = None
    """Save and stop after this optimizer step of the run."""
    max_hours: float | None = None
    """Save and exit, with code 75, before this process is that many hours old."""
    stop_at: datetime | None = None
    """Save and exit, with code 75, before this time: 2027-01-31T18:00+01:00, or without an offset
    from UTC in the time zone of the machine. In a Slurm job, SLURM_JOB_END_TIME is such a time."""
    spot: Annotated[Spot, tyro.conf.arg(metavar="auto|on|off")] = "auto"
    """Watch for EC2's spot interruption notice; auto: on EC2 only."""
    sync: str | None = None
    """Upload the run here after each save, and download it from here on a new machine:
    s3://BUCKET/RUN, another fsspec address, or a path."""
    price_per_hour: float | None = None
    """Price of all machines together, USD per hour: logs the cost so far and the cost to come."""

    def check(self) -> None:
        """Check all values.

        Raises:
            InputError: If one is out of range.
        """
        check_names(self.allow_change)
        if not self.resume:
            raise InputError(
                "--resume is empty", expected=f"{AUTO}, {NONE}, or the directory of a checkpoint"
            )
        numbers = {
            "--checkpoint-minutes": self.checkpoint_minutes,
            "--checkpoint-steps": self.checkpoint_steps,
            "--keep-last": self.keep_last,
            "--stop-at-step": self.stop_at_step,
            "--max-hours": self.max_hours,
            "--price-per-hour": self.price_per_hour,
        }
        for name, number in numbers.items():
            if number is not None:
                require_positive(name, number)

    def saves_after(self, step: int) -> bool:
        """Return whether a checkpoint is due after a step, counted from 1 over the whole run."""
        every = self.checkpoint_steps
        return every is not None and step % every == 0


def check_trackio_space(space: str, trackers: Sequence[str]) -> None:
    """Check the Space that Trackio is to sync a run's dashboard to.

    Args:
        space: Its Hub id.
        trackers: Names of the trackers.

    Raises:
        InputError: If it is not a Hub id, or Trackio is not among the trackers.
    """
    if not _HUB_ID.fullmatch(space):
        raise InputError(
            f"--trackio-space {space!r} is not a Hub id", expected="OWNER/NAME", found=repr(space)
        )
    if "trackio" not in trackers:
        raise InputError(
            "--trackio-space needs the tracker trackio",
            found=f"--trackers {' '.join(trackers)}",
            fix=f"--trackers {' '.join([*trackers, 'trackio'])}",
        )
