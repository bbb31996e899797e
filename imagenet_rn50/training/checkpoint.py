"""Saving and restoring the state of all ranks: Accelerate's state, made safe.

`Accelerator.save_state` writes file by file into the final folder. Here it writes into a temporary
one; when all ranks are done, a manifest is added, everything is synced, and the folder gets its
name by one rename. Only then are older ones pruned. Restoring takes the newest that is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from imagenet_rn50.files import TEMPORARY_SUFFIX
from imagenet_rn50.runs.checkpoints import (
    Checkpoint,
    folder_name,
    newest_checkpoint,
    prune,
    seal,
)


def save(
    accelerator: Accelerator,
    checkpoints: Path,
    samples_seen: int,
    *,
    is_best: bool,
    add_files: Callable[[Path], None],
) -> None:
    """Saves model and optimizer under the name of the progress; every rank calls it.

    Args:
        accelerator: Has prepared what is to be saved.
        checkpoints: The run's folder of checkpoints.
        samples_seen: How far the run is.
        is_best: Whether to keep it, until a better one comes, when older ones are pruned.
        add_files: Writes into the given folder what belongs to the checkpoint besides; called on
            the main process.
    """
    final = checkpoints / folder_name(samples_seen)
    temporary = final.with_name(final.name + TEMPORARY_SUFFIX)
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        add_files(temporary)
        seal(temporary, final, samples_seen, is_best=is_best)
        prune(checkpoints)
    accelerator.wait_for_everyone()


def restore(accelerator: Accelerator, checkpoints: Path) -> Checkpoint | None:
    """Loads the newest whole checkpoint into what the accelerator prepared; every rank calls it.

    Args:
        accelerator: Has prepared model and optimizer.
        checkpoints: The run's folder of checkpoints.

    Returns:
        What was loaded, equal on all ranks; None, with nothing changed, when there is none.
    """
    found = [newest_checkpoint(checkpoints) if accelerator.is_main_process else None]
    broadcast_object_list(found)  # one rank reads and hashes, all load the same
    checkpoint = found[0]
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint.folder))
    return checkpoint
