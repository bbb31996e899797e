"""Accelerate's trackers (TensorBoard, wandb, trackio), which log what metrics.jsonl holds.

They write files or connect to servers. One that fails is disabled, and training continues.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import get_token

from imagenet_rn50.recipe import Recipe, flatten
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.logging import logger


def init_trackers(
    accelerator: Accelerator, recipe: Recipe, run: Path, trackio_space: str | None = None
) -> None:
    """Start the trackers; all ranks call it.

    Args:
        accelerator: Its `log_with` names the trackers.
        recipe: Hyperparameters to log.
        run: The run directory.
        trackio_space: Space on the Hub, owner/name, that Trackio syncs the run's dashboard to.
    """
    hyperparameters = {key: str(value) for key, value in flatten(recipe.model_dump())}
    options = {
        "wandb": {"dir": str(run), "group": run.name},
        # By default, Trackio would start another run each time that this one resumes.
        "trackio": {"name": run.name, "resume": "allow", "space_id": trackio_space},
    }
    requested, started = list(accelerator.log_with), []
    for name in requested:  # one by one: one that fails must not disable the others
        accelerator.log_with, accelerator.trackers = [name], []
        with _disable_on_error(accelerator, str(name)):
            accelerator.init_trackers("imagenet_rn50", hyperparameters, options)
            started += accelerator.trackers
    accelerator.log_with, accelerator.trackers = requested, started


def require_hub_token() -> None:
    """Raise an error unless a Hub token is set, which trackio needs to sync to a Space.

    Raises:
        InputError: If there is none.
    """
    if get_token() is None:
        raise InputError(
            "--trackio-space needs a Hub token, and none is set",
            expected="one with write access, from https://huggingface.co/settings/tokens",
            fix="hf auth login, or set HF_TOKEN",
        )


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
