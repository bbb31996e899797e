"""Make the Accelerator that `Trainer` expects, and describe the system for logs."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate import Accelerator, DistributedDataParallelKwargs

import imagenet_rn50
from imagenet_rn50.utils.errors import InputError, RankError, first_line
from imagenet_rn50.utils.formatting import counted
from imagenet_rn50.utils.signals import check_num_gpus, check_world_size


@dataclass
class _DdpKwargs(DistributedDataParallelKwargs):  # type: ignore[misc]
    """Accelerate's options of DistributedDataParallel, and torch's new name of one of them.

    Accelerate knows `broadcast_buffers` only, which torch deprecates with a warning on every rank.
    """

    forward_sync_buffers: bool = True


def make_accelerator(run: Path | None = None, trackers: tuple[str, ...] = ()) -> Accelerator:
    """Make the Accelerator that `Trainer` expects. The launcher chooses devices and precision.

    Args:
        run: Run directory, for trackers that write files.
        trackers: Names of Accelerate's trackers: tensorboard, wandb, trackio.

    Raises:
        InputError: If a tracker is not installed, which Accelerate would ignore; if Accelerate is
            configured to accumulate gradients; if the launched processes did not join, or are more
            than the GPUs.
    """
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"the tracker {name} is not installed", fix=f"pip install {name}")
    accelerator = Accelerator(
        log_with=list(trackers) or None,
        project_dir=run / "tensorboard" if run else None,
    )
    # BatchNorm buffers are kept equal by RunningStatistics, not by copying those of rank 0. As an
    # attribute, because the constructor takes no subclass of Accelerate's options.
    accelerator.ddp_handler = _DdpKwargs(forward_sync_buffers=False)
    on_gpu = accelerator.device.type == "cuda"
    check_world_size(accelerator.num_processes, on_gpu=on_gpu)
    if on_gpu:
        check_num_gpus(torch.cuda.device_count())
    if (num_steps := accelerator.gradient_accumulation_steps) != 1:
        raise InputError(
            f"Accelerate is configured to accumulate gradients over {num_steps} steps, which would "
            "scale them twice",
            expected="1: the recipe's global_batch and micro_batch determine the accumulation",
            fix="unset ACCELERATE_GRADIENT_ACCUMULATION_STEPS, or omit it from the launcher's "
            "options",
        )
    return accelerator


@contextmanager
def out_of_memory_explained(micro_batch: int) -> Iterator[None]:
    """Explain that a GPU has too little memory for a run, which torch reports by a traceback.

    Args:
        micro_batch: Images in one forward pass.

    Raises:
        InputError: If the body ran out of GPU memory; only on the rank that did.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RankError(
            f"a GPU ran out of memory with micro batches of {counted(micro_batch, 'image')}",
            found=first_line(error),
            fix="end other programs on it (nvidia-smi); or start a new run with a smaller "
            "--micro-batch: `doctor --find-micro-batch` tells the largest that fits",
        ) from None


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or the architecture of this machine's processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def system_info(accelerator: Accelerator) -> dict[str, Any]:
    """Return hardware, precision and versions, for model cards and bug reports; no secrets."""
    device = accelerator.device
    return {
        "world_size": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "compile": accelerator.state.dynamo_plugin.backend.value.lower(),
        "device": f"{device.type} ({device_name(device)})",
        "python": platform.python_version(),
        "versions": {
            "imagenet_rn50": imagenet_rn50.__version__,
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
            "transformers": transformers.__version__,
        },
    }
