"""What a checkpoint holds: taken to host memory in a moment, written later, read after its hashes.

The files have Accelerate's names and formats, so `accelerator.load_state(folder)` reads them too.
There is no random state among them: pixels and mixing are drawn from the position in the stream.

Nothing here unpickles freely: weights are safetensors, and the optimizer's state is read by torch's
`weights_only` unpickler, which makes tensors and plain values and calls nothing else.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from imagenet_rn50.errors import InputError
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.runs.checkpoints import EMA_WEIGHTS

_BYTES_PER_NUMBER = 4  # float32
_NUM_MOMENTS = {"sgd": 1, "adamw": 2, "lamb": 2}

MODEL, OPTIMIZER, SCALER = "model.safetensors", "optimizer.bin", "scaler.pt"

State: TypeAlias = dict[str, Any]
"""What each file of a checkpoint will hold: tensors in host memory and plain values."""


def take_to_host(value: Any) -> Any:
    """Returns a copy of tensors in dicts, lists and tuples that training no longer changes.

    From CUDA all copies are begun at once, into page-locked memory, and waited for together.

    Args:
        value: A tensor, a container of such, or a plain value.
    """
    copied = _copied(value)
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    return copied


def write_state(folder: Path, state: State) -> None:
    """Writes the files of a checkpoint.

    Raises:
        ValueError: When a weight is not finite: such a state is no place to go on from.
    """
    for name, tensor in state[MODEL].items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is no longer finite")
    # As Accelerate marks it, and transformers asks for.
    save_file(_contiguous(state[MODEL]), folder / MODEL, metadata={"format": "pt"})
    torch.save(state[OPTIMIZER], folder / OPTIMIZER)
    if SCALER in state:
        torch.save(state[SCALER], folder / SCALER)
    if EMA_WEIGHTS in state:
        tensors, metadata = state[EMA_WEIGHTS]
        save_file(_contiguous(tensors), folder / EMA_WEIGHTS, metadata=metadata)


def read_plain(content: bytes) -> Any:
    """Returns what `torch.save` wrote, if it is nothing but tensors and plain values.

    Raises:
        InputError: When it is anything else; nothing of it is called.
    """
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            "a checkpoint's state holds something else than tensors and plain values",
            found=str(error).partition("\n")[0],
        ) from None


def num_bytes(state: State) -> int:
    """Returns how much memory the tensors of a state take."""
    return sum(tensor.nbytes for tensor in _tensors(state))


def _copied(value: Any) -> Any:
    """Begins to copy every tensor of nested containers."""
    if isinstance(value, Tensor):
        source = value.detach()
        copy = torch.empty_like(source, device="cpu", pin_memory=source.is_cuda)
        return copy.copy_(source, non_blocking=source.is_cuda)  # other devices are not waited for
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(entry) for entry in value)
    return value


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors as safetensors wants them, channels no longer last."""
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _tensors(value: Any) -> Iterable[Tensor]:
    """Yields every tensor of nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)


def bytes_of_checkpoint(model: nn.Module, recipe: Recipe) -> int:
    """Returns the disk space that a checkpoint takes, roughly: weights, moments and averages."""
    num_numbers = 1 + _NUM_MOMENTS[recipe.optimizer.name] + bool(recipe.ema_decay)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return _BYTES_PER_NUMBER * num_numbers * num_parameters
