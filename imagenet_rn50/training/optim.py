"""The optimizer, and the exponential moving average (EMA) of the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from imagenet_rn50.recipe import OptimizerRecipe
from imagenet_rn50.utils.private_apis import foreach_copy_

_NUM_UPDATES = "n_averaged"


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe, *, fused: bool = False) -> Optimizer:
    """Build the optimizer with two parameter groups.

    Convolution and linear weights decay; norms and biases, all parameters of one dimension, do not
    (He et al. 2019, "Bag of Tricks", section 3.1), unless the recipe says so.

    LAMB scales the update of each decayed weight by its norm (You et al. 2020); parameters without
    decay take Adam's step. It is timm's, as used by "ResNet strikes back".

    Args:
        model: The model.
        recipe: Hyperparameters.
        fused: Whether SGD and AdamW update all parameters in one kernel launch. Not for fp16: a
            fused step does not report to the GradScaler that it was skipped, and if SGD's very
            first step is, its momentum is uninitialised memory (torch 2.14).
    """
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {
            "params": others,
            "weight_decay": recipe.weight_decay if recipe.decay_norms_and_biases else 0.0,
        },
    ]
    if recipe.name == "adamw":
        return AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=fused)
    if recipe.name == "lamb":
        from timm.optim import Lamb  # timm registers all of its models first, which takes seconds

        lamb: Optimizer = Lamb(groups, lr=recipe.lr, betas=recipe.betas)
        return lamb
    # Nesterov needs momentum.
    nesterov = recipe.nesterov and recipe.momentum > 0
    return SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov, fused=fused)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group, in place."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class Ema:
    """A second copy of the model whose weights and BatchNorm statistics are averaged over training.

    The exponential moving average of the weights, as torch's `get_ema_multi_avg_fn` defines it:

        W_0^EMA = W_0
        W_t^EMA = decay W_(t-1)^EMA + (1 - decay) W_t

    torch's own `AveragedModel` computes the same, but copies its counter to the device at every
    update, which waits there for all work launched before.

    Args:
        model: The unwrapped model, on its device.
        decay: Weight of the old average in each step, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self._decay = decay
        self._num_updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the weights after a step; the first ones become the average."""
        averages, counters = _floats_and_integers(self.model)
        weights, counts = _floats_and_integers(model)
        if self._num_updates == 0:
            foreach_copy_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1 - self._decay)
        if counters:
            foreach_copy_(counters, counts)
        self._num_updates += 1

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the averages, and the number of updates as safetensors metadata."""
        return self.model.state_dict(), {_NUM_UPDATES: str(self._num_updates)}

    def load(self, path: Path) -> None:
        """Load averages that were saved with `state_dict`.

        Args:
            path: A safetensors file.
        """
        with safe_open(path, framework="pt") as file:
            self.model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
            self._num_updates = int(file.metadata()[_NUM_UPDATES])

    def reset(self, weights: Mapping[str, Tensor]) -> None:
        """Start again from a model's weights."""
        self.model.load_state_dict(weights)
        self._num_updates = 0


def _floats_and_integers(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors of a model to average, and the integer ones: BatchNorm's counters."""
    tensors = [*model.parameters(), *model.buffers()]
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    return floats, [tensor for tensor in tensors if not tensor.is_floating_point()]
