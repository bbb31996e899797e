"""The exponential moving average of the weights, as torch's `get_ema_multi_avg_fn` defines it.

    W_0^EMA = W_0
    W_t^EMA = decay W_(t-1)^EMA + (1 - decay) W_t

torch's own `AveragedModel` computes the same, but counts on the host in a tensor that it copies to
the device at every update, which waits there for all that was launched before.
"""

from __future__ import annotations

import copy
import json

import torch
from safetensors.torch import load
from torch import Tensor, nn

_NUM_UPDATES = "n_averaged"


class Ema:
    """A second copy of the model whose weights and BatchNorm statistics lag behind.

    Args:
        model: The bare model, on its device.
        decay: Part of the average that stays in each step, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self._decay = decay
        self._num_updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes a step's new weights into the average; the first ones become the average."""
        averages, counters = _floats_and_integers(self.model)
        weights, counts = _floats_and_integers(model)
        if self._num_updates == 0:
            torch._foreach_copy_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1 - self._decay)
        if counters:
            torch._foreach_copy_(counters, counts)
        self._num_updates += 1

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Returns what a checkpoint must hold: the averages, and what else to know of them."""
        return self.model.state_dict(), {_NUM_UPDATES: str(self._num_updates)}

    def load(self, content: bytes) -> None:
        """Takes up the average of a checkpoint.

        Args:
            content: Its ema.safetensors.
        """
        self.model.load_state_dict(load(content))
        self._num_updates = int(metadata_of(content)[_NUM_UPDATES])

    def begin_with(self, model: nn.Module) -> None:
        """Begins anew with a model's weights."""
        self.model.load_state_dict(model.state_dict())
        self._num_updates = 0


def metadata_of(content: bytes) -> dict[str, str]:
    """Returns the metadata of a safetensors file: a length, then JSON of that length."""
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return metadata


def _floats_and_integers(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Returns what is averaged of a model, and what only counts: BatchNorm's batches."""
    tensors = [*model.parameters(), *model.buffers()]
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    return floats, [tensor for tensor in tensors if not tensor.is_floating_point()]
