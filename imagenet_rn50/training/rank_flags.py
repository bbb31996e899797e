"""The agreement of all ranks to stop, or to save, at the same micro batch."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import distributed


class Requests(NamedTuple):
    """Requests of one rank, or of any rank.

    Attributes:
        stop: Save and stop.
        save: Save.
    """

    stop: bool
    save: bool


class RankFlags:
    """Exchange requests, so that all ranks act on them at the same micro batch.

    The exchange runs between hosts during a micro batch, and its result is read after the next: it
    costs the device nothing, and requests arrive one call later. On one rank they arrive at once.

    Args:
        world_size: Number of ranks.
    """

    def __init__(self, world_size: int) -> None:
        self._group = _cpu_group() if world_size > 1 else None
        self._pending: tuple[Any, torch.Tensor] | None = None

    def exchange(self, *, stop: bool, save: bool = False) -> Requests:
        """Send this rank's requests; return those of any rank, as of the previous call.

        Every rank calls it equally often.
        """
        if self._group is None:
            return Requests(stop, save)
        received = self._read()
        flags = torch.tensor([stop, save], dtype=torch.uint8)
        work = distributed.all_reduce(
            flags, op=distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        self._pending = work, flags
        return received

    def close(self) -> None:
        """Wait for the pending exchange, so that no rank exits in the middle of it."""
        with suppress(RuntimeError):  # another rank is dead, which is reported elsewhere
            self._read()

    def _read(self) -> Requests:
        """Return the result of the pending exchange."""
        if self._pending is None:
            return Requests(stop=False, save=False)
        work, flags = self._pending
        work.wait()
        self._pending = None
        stop, save = flags.tolist()
        return Requests(bool(stop), bool(save))


def _cpu_group() -> distributed.ProcessGroup:
    """Return a group of all ranks that communicates between hosts, whatever their devices."""
    group = distributed.new_group(backend="gloo")
    assert isinstance(group, distributed.ProcessGroup)  # of all ranks, so this one is a member
    return group
