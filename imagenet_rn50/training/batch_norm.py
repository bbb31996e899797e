"""BatchNorm statistics that do not depend on how a global batch is split over ranks and time.

A global batch is several micro batches, one after the other on a rank or in parallel on several.
Left alone, running statistics r would decay once per micro batch on one rank, and once per step on
many. Here every global batch updates them exactly once, by the mean over its micro batches:

    r  <-  (1 - m) r + m mean(b_1, ..., b_n)

On a rank that accumulates several micro batches, the layers run with momentum 1, so that each micro
batch leaves its own statistics b_i. These are summed, and momentum m is applied once, after the
step. (A momentum that changes with the micro step would need no sum, but torch.compile would
compile one graph for each value.) Over ranks, buffers are averaged after each step; the update is
linear, so the average equals the formula.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from imagenet_rn50.evaluation.evaluate import Reduce
from imagenet_rn50.utils.private_apis import foreach_copy_


class RunningStatistics:
    """The running statistics of a model's BatchNorm layers, all of one momentum.

    Args:
        model: The unwrapped model.
        accumulation: Micro batches of this rank in one step.
        world_size: Number of ranks.
    """

    def __init__(self, model: nn.Module, accumulation: int, world_size: int) -> None:
        self._layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
        self._accumulation = accumulation if self._layers else 1
        self._world_size = world_size if self._layers else 1
        self._before = self._sum = torch.empty(0)
        self._num_begun = 0
        if self._accumulation > 1:
            (self._momentum,) = {layer.momentum or 0.0 for layer in self._layers}
            for layer in self._layers:
                layer.momentum = 1.0

    def before_micro_batch(self, micro_step: int) -> None:
        """Collect the statistics of the previous micro batch of the step.

        Args:
            micro_step: Micro batches of this step that ran before.
        """
        if self._accumulation == 1:
            return
        self._num_begun = micro_step + 1
        if micro_step == 0:
            self._before = self._read()
            self._sum = torch.zeros_like(self._before)
        else:
            self._sum += self._read()

    @torch.no_grad()
    def abandon_step(self) -> None:
        """Undo the micro batches of an unfinished step, in BatchNorm's counters too."""
        if self._num_begun == 0:
            return
        self._write(self._before)
        counters = [layer.num_batches_tracked for layer in self._layers]
        torch._foreach_sub_([c for c in counters if c is not None], self._num_begun)
        self._num_begun = 0

    def after_step(self, reduce: Reduce) -> None:
        """Update the running statistics; every rank calls it after every step.

        Args:
            reduce: Sums a tensor over all ranks.
        """
        if self._accumulation == 1 and self._world_size == 1:
            return
        now = self._read()
        if self._accumulation > 1:
            self._num_begun = 0
            now = self._before.lerp((self._sum + now) / self._accumulation, self._momentum)
        if self._world_size > 1:
            now = reduce(now) / self._world_size
        self._write(now)

    def _buffers(self) -> list[Tensor]:
        """Return the current running means and variances."""
        buffers = [b for layer in self._layers for b in (layer.running_mean, layer.running_var)]
        return [buffer for buffer in buffers if buffer is not None]

    def _read(self) -> Tensor:
        """Return a copy of all statistics in one tensor, in one launch on a GPU."""
        return torch.cat(self._buffers())

    @torch.no_grad()
    def _write(self, values: Tensor) -> None:
        """Set all statistics, in one launch on a GPU."""
        buffers = self._buffers()
        foreach_copy_(buffers, torch.split(values, [b.numel() for b in buffers]))
