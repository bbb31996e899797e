"""How a run is kept: when it is saved, where it goes on, and what may end it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import tyro

from imagenet_rn50.errors import InputError
from imagenet_rn50.runs.checkpoints import KEEP_LAST
from imagenet_rn50.runs.continuity import check_names

AUTO, NONE = "auto", "none"

Spot: TypeAlias = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Persistence:
    """How a run is kept; nothing in it changes what is learnt."""

    resume: str = AUTO
    """auto: go on from the newest whole checkpoint, or begin what was never saved. none: begin, and
    refuse a folder that holds checkpoints. Or a checkpoint's folder, of this run or of another, to
    go on from."""
    allow_change: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What may differ from the checkpoint: a field of the recipe (optimizer.lr), shards, or
    mixed_precision; may be given several times."""
    checkpoint_minutes: float | None = 15.0
    """Save this often, besides at the end of each epoch; None does not."""
    checkpoint_steps: int | None = None
    """Save after each so many optimizer steps of the run."""
    keep_last: int = KEEP_LAST
    """Newest checkpoints that are kept, besides the best."""
    stop_at_step: int | None = None
    """Save and end after this optimizer step of the run, as a job with a time limit may want."""
    spot: Annotated[Spot, tyro.conf.arg(metavar="auto|on|off")] = "auto"
    """Listen for EC2's notice that a spot machine will be taken away; auto: when on EC2."""
    sync: str | None = None
    """Bring the run here after each save, and fetch it from here on a new machine:
    s3://BUCKET/RUN, another address of fsspec's, or a path."""
    price_per_hour: float | None = None
    """What the machines cost, USD an hour in all: the money spent and left stands in the logs."""

    def check(self) -> None:
        """Makes sure that the values make sense.

        Raises:
            InputError: When one does not.
        """
        check_names(self.allow_change)
        if not self.resume:
            raise InputError(
                "--resume is empty", expected=f"{AUTO}, {NONE}, or the folder of a checkpoint"
            )
        numbers = {
            "--checkpoint-minutes": self.checkpoint_minutes,
            "--checkpoint-steps": self.checkpoint_steps,
            "--keep-last": self.keep_last,
            "--stop-at-step": self.stop_at_step,
            "--price-per-hour": self.price_per_hour,
        }
        for name, number in numbers.items():
            if number is not None and number <= 0:
                raise InputError(f"{name} {number}", expected="a number above 0")

    def saves_after(self, step: int) -> bool:
        """Says whether a checkpoint belongs after a step, counted from 1 over the whole run."""
        every = self.checkpoint_steps
        return every is not None and step % every == 0


DEFAULTS = Persistence()
