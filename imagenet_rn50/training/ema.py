"""The exponential moving average of the weights, kept by torch's own `AveragedModel`."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

_NUM_UPDATES = "n_averaged"


class Ema:
    """A second copy of the model whose weights and BatchNorm statistics lag behind.

    Args:
        model: The bare model, on its device.
        decay: Part of the average that stays in each step, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        average = get_ema_multi_avg_fn(decay)
        self._averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights."""
        return self._averaged.module

    def update(self, model: nn.Module) -> None:
        """Takes a step's new weights into the average; the first ones become the average."""
        self._averaged.update_parameters(model)

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Returns what a checkpoint must hold: the averages, and what else to know of them."""
        return self.model.state_dict(), {_NUM_UPDATES: str(self._averaged.n_averaged.item())}

    def load(self, content: bytes) -> None:
        """Takes up the average of a checkpoint.

        Args:
            content: Its ema.safetensors.
        """
        self.model.load_state_dict(load(content))
        num_updates = int(metadata_of(content)[_NUM_UPDATES])
        self._averaged.n_averaged.copy_(torch.tensor(num_updates))

    def begin_with(self, model: nn.Module) -> None:
        """Begins anew with a model's weights."""
        self.model.load_state_dict(model.state_dict())
        self._averaged.n_averaged.zero_()


def metadata_of(content: bytes) -> dict[str, str]:
    """Returns the metadata of a safetensors file: a length, then JSON of that length."""
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return metadata
