"""Accelerate's trackers (TensorBoard, wandb, trackio), which log what metrics.jsonl holds.

They write files or connect to servers. One that fails is disabled, and training continues.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from imagenet_rn50.recipe import Recipe, flatten
from imagenet_rn50.utils.logging import logger


def init_trackers(accelerator: Accelerator, recipe: Recipe, run: Path) -> None:
    """Start the trackers; all ranks call it."""
    hyperparameters = {key: str(value) for key, value in flatten(recipe.model_dump())}
    into_run = {"wandb": {"dir": str(run), "group": run.name}}
    requested, started = list(accelerator.log_with), []
    for name in requested:  # one by one: one that fails must not disable the others
        accelerator.log_with, accelerator.trackers = [name], []
        with _disable_on_error(accelerator, str(name)):
            accelerator.init_trackers("imagenet_rn50", hyperparameters, into_run)
            started += accelerator.trackers
    accelerator.log_with, accelerator.trackers = requested, started


def log_to_trackers(accelerator: Accelerator, values: Mapping[str, Any], samples_seen: int) -> None:
    """Log values to all trackers; only the main rank has any."""
    for tracker in list(accelerator.trackers):
        with _disable_on_error(accelerator, tracker.name):
            tracker.log(dict(values), step=samples_seen)


def end_training(accelerator: Accelerator) -> None:
    """Close the trackers and the process group; all ranks call it."""
    for tracker in list(accelerator.trackers):
        with _disable_on_error(accelerator, tracker.name):
            tracker.finish()
    accelerator.trackers.clear()
    accelerator.end_training()


@contextmanager
def _disable_on_error(accelerator: Accelerator, name: str) -> Iterator[None]:
    """Disable a tracker that fails in the body: TensorBoard's thread, once dead, stays dead."""
    try:
        yield
    except Exception as error:  # wandb's have no narrower type: no key, no server
        accelerator.trackers = [one for one in accelerator.trackers if one.name != name]
        problem = f"{type(error).__name__}: {error}"
        logger.info(f"tracker {name} failed and is disabled for this run: {problem}")
