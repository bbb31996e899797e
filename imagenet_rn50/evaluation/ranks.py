"""The processes that share one evaluation: started by torchrun or `accelerate launch`, or just one.

They speak once, at the end of a pass, so gloo will do on any device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from imagenet_rn50.errors import InputError
from imagenet_rn50.processes import number_in_environment, require_joined

_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """One process among those that share the work.

    Args:
        device: Where this process runs the model.
        rank: Which one it is, from 0.
        world_size: How many there are.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def add_up(self, values: Tensor) -> Tensor:
        """Returns the sum of a tensor on the CPU over all ranks; every rank calls it."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def raise_together(self, error: InputError | None) -> None:
        """Raises on every rank what any rank met; every rank calls it.

        Raises:
            InputError: The error of the first rank that has one.
        """
        found: list[str | None] = [str(error) if error else None]
        if self.world_size > 1:
            found = [None] * self.world_size
            dist.all_gather_object(found, str(error) if error else None)
        for text in found:
            if text is not None:
                raise InputError(text)


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Joins the ranks that a launcher started, by the variables that it set; alone without one.

    Raises:
        InputError: When the launcher did not say how to join, or started tasks that cannot.
    """
    world_size = number_in_environment("WORLD_SIZE") or 1
    on_gpu = torch.cuda.is_available()
    require_joined(world_size, on_gpu=on_gpu)
    local_rank = number_in_environment("LOCAL_RANK") or 0
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if world_size == 1:
        yield Ranks(device)
        return
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {world_size}, but {' and '.join(missing)} are not set",
            expected="all that torchrun or accelerate launch sets",
            fix="start with one of them, or unset WORLD_SIZE",
        )
    dist.init_process_group("gloo")
    try:
        yield Ranks(device, number_in_environment("RANK") or 0, world_size)
    finally:
        dist.destroy_process_group()
