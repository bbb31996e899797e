"""Accelerate's trackers, TensorBoard say, beside metrics.jsonl, which has all that they have.

They write files or speak to servers. When one fails, it is left, and the training goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    asked, begun = list(accelerator.log_with), []
    for name in asked:  # one by one, so that one that fails takes no other along
        accelerator.log_with, accelerator.trackers = [name], []
        with _left_when_it_fails(accelerator, str(name)):
            accelerator.init_trackers("imagenet_rn50", hyperparameters, into_run)
            begun += accelerator.trackers
    accelerator.log_with, accelerator.trackers = asked, begun


def track(accelerator: Accelerator, values: Mapping[str, Any], samples_seen: int) -> None:
    """Tells the trackers some figures of a place in the run; only the main rank has any."""
    for tracker in list(accelerator.trackers):
        with _left_when_it_fails(accelerator, tracker.name):
            tracker.log(dict(values), step=samples_seen)


def end_tracking(accelerator: Accelerator) -> None:
    """Closes the trackers, and what the ranks speak through; all ranks call it."""
    for tracker in list(accelerator.trackers):
        with _left_when_it_fails(accelerator, tracker.name):
            tracker.finish()
    accelerator.trackers.clear()
    accelerator.end_training()


@contextmanager
def _left_when_it_fails(accelerator: Accelerator, name: str) -> Iterator[None]:
    """Goes on without a tracker that fails in the body: TensorBoard's thread, once dead, stays so.

    Args:
        accelerator: Has the trackers.
        name: Which of them the body calls.
    """
    try:
        yield
    except Exception as error:  # wandb's have no narrower kind: no key, no server
        accelerator.trackers = [one for one in accelerator.trackers if one.name != name]
        problem = f"{type(error).__name__}: {error}"
        say(f"left for the rest of this process: the tracker {name}, which fails: {problem}")
