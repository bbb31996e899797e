"""The exponential moving average of the weights, kept by torch's own `AveragedModel`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from imagenet_rn50.runs.checkpoints import EMA_WEIGHTS

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

    def save(self, folder: Path) -> None:
        """Writes the average into a checkpoint."""
        state = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        counted = {_NUM_UPDATES: str(self._averaged.n_averaged.item())}
        save_file(state, folder / EMA_WEIGHTS, metadata=counted)

    def load(self, folder: Path) -> None:
        """Takes up the average of a checkpoint."""
        from safetensors import safe_open

        path = folder / EMA_WEIGHTS
        self.model.load_state_dict(load_file(path))
        with safe_open(path, framework="pt") as file:
            self._averaged.n_averaged.copy_(torch.tensor(int(file.metadata()[_NUM_UPDATES])))
