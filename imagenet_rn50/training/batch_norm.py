"""BatchNorm statistics that do not depend on how a global batch was laid out.

A global batch is several micro batches, run one after the other on a rank or side by side on
several. Running statistics r would then decay once per micro batch on one rank and once in all on
many. Here every global batch moves them exactly once, by the mean over its micro batches:

    r  <-  (1 - m) r + m mean(b_1, ..., b_n)

On a rank that runs several micro batches in turn, the layers run with momentum 1, so that each
leaves its own statistics b_i, which are added up; momentum m is applied once, after the step. (A
momentum that changes from turn to turn would do without the sum, but under torch.compile each value
of it is another graph to compile.) Over ranks, buffers are averaged after each step; the update is
linear, so the average is the formula's too.
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
        model: The bare model.
        accumulation: Micro batches that this rank runs in a step.
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

    def before_micro_batch(self, turn: int) -> None:
        """Take note of the micro batch before; `turn` counts from 0 within the step."""
        if self._accumulation == 1:
            return
        self._num_begun = turn + 1
        if turn == 0:
            self._before = self._read()
            self._sum = torch.zeros_like(self._before)
        else:
            self._sum += self._read()

    @torch.no_grad()
    def abandon_step(self) -> None:
        """Undo the micro batches of a step that is not finished; BatchNorm counts them, too."""
        if self._num_begun == 0:
            return
        self._write(self._before)
        counters = [layer.num_batches_tracked for layer in self._layers]
        torch._foreach_sub_([c for c in counters if c is not None], self._num_begun)
        self._num_begun = 0

    def after_step(self, reduce: Reduce) -> None:
        """Moves the statistics by one step; every rank calls it after every step."""
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
        """Return running means and variances, where they are now."""
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
