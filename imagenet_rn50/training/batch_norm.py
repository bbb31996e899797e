"""BatchNorm statistics that do not depend on how a global batch was laid out.

A global batch is several micro batches, run one after the other on a rank or side by side on
several. Running statistics r would then decay once per micro batch on one rank and once in all on
many. Here every global batch moves them exactly once, by the mean over its micro batches:

    r  <-  (1 - m) r + m mean(b_1, ..., b_n)

On a rank that runs a micro batches in turn, the momentum of turn i (from 1) is
(m / a) / (1 - (a - i) m / a), under which the a steps add up to that formula. Over ranks, buffers
are averaged after each step; the update is linear, so the average is the formula's too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from imagenet_rn50.evaluation.validate import Reduce


class RunningStatistics:
    """The running statistics of a model's BatchNorm layers.

    Args:
        model: The bare model, on its device.
        accumulation: Micro batches that this rank runs in a step.
        world_size: Number of ranks.
    """

    def __init__(self, model: nn.Module, accumulation: int, world_size: int) -> None:
        self._layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
        self._momenta = [layer.momentum or 0.0 for layer in self._layers]
        self._accumulation = accumulation
        self._world_size = world_size

    def before_micro_batch(self, turn: int) -> None:
        """Sets each layer's momentum for a micro batch; `turn` counts from 0 within the step."""
        if self._accumulation == 1:
            return
        later = self._accumulation - 1 - turn
        for layer, momentum in zip(self._layers, self._momenta, strict=True):
            share = momentum / self._accumulation
            layer.momentum = share / (1 - later * share)

    def after_step(self, reduce: Reduce) -> None:
        """Averages the statistics over the ranks; every rank calls it after every step."""
        if self._world_size == 1 or not self._layers:
            return
        buffers = [b for layer in self._layers for b in (layer.running_mean, layer.running_var)]
        tensors = [buffer for buffer in buffers if buffer is not None]
        flat = reduce(torch.cat([tensor.flatten() for tensor in tensors])) / self._world_size
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        _copy_all(tensors, parts)


@torch.no_grad()
def _copy_all(targets: list[Tensor], sources: tuple[Tensor, ...]) -> None:
    """Copies each source into its target, whatever its shape, in one launch on a GPU."""
    torch._foreach_copy_(
        targets, [s.view_as(target) for target, s in zip(targets, sources, strict=True)]
    )
