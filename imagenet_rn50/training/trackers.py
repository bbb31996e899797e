"""Accelerate's trackers, TensorBoard say, beside metrics.jsonl, which has all that they have.

They write files or speak to servers. When one fails so, they are left, and the training goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from imagenet_rn50.console import say
from imagenet_rn50.recipe import flatten
from imagenet_rn50.training.session import Session


def begin_tracking(session: Session) -> None:
    """Tells the trackers of the run; all ranks call it."""
    recipe, run = session.recipe, session.folder.path
    hyperparameters = {key: str(value) for key, value in flatten(recipe.model_dump())}
    into_run = {"wandb": {"dir": str(run), "group": run.name}}
    accelerator = session.accelerator
    try:
        accelerator.init_trackers("imagenet_rn50", config=hyperparameters, init_kwargs=into_run)
    except OSError as error:
        _leave(accelerator, error)


def track(accelerator: Accelerator, values: Mapping[str, Any], samples_seen: int) -> None:
    """Tells the trackers some figures of a place in the run."""
    try:
        accelerator.log(dict(values), step=samples_seen)
    except OSError as error:
        _leave(accelerator, error)


def end_tracking(accelerator: Accelerator) -> None:
    """Closes the trackers; all ranks call it."""
    try:
        accelerator.end_training()
    except OSError as error:
        _leave(accelerator, error)


def _leave(accelerator: Accelerator, error: OSError) -> None:
    """Goes on without trackers: what has failed once, TensorBoard's thread say, stays so."""
    names = ", ".join(tracker.name for tracker in accelerator.trackers)
    say(f"left for the rest of this process: {names}, which cannot write: {error}")
    accelerator.trackers.clear()
