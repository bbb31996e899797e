"""Memory of batches that loader workers share with the training process, used again and again.

A batch in fresh shared memory costs both processes a page fault for every 4 kB: for an image of
224 px, 37 faults in the worker, which also clears each page, and some more in the reader. So each
worker keeps a few slabs of shared memory. It sends a slab once, as torch sends a tensor; later
batches name it. The training process hands out tensors that lie in the slab, and marks it free when
the last tensor that shows it is gone, however long somebody keeps one. Until then the worker takes
another slab, or a new one: it never waits, and never writes over a batch that is in use.

    worker                              training process
    empty_images -> slab, fill rows
    send: flag = 1, (slab, labels) ---> Mappings: slab by its number -> Batch
    empty_images: a slab with flag 0 <- flag = 0 when the batch's memory is no longer referenced
"""

from __future__ import annotations

import math
import os
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagenet_rn50.utils.private_apis import new_shared_storage

_FLAG_BYTES = 64  # a cache line after the pixels; its last byte says whether the reader has them


@dataclass(eq=False)
class _Slab:
    """Shared memory of one batch, as its worker sees it.

    Attributes:
        number: Its number in the worker, from 0.
        memory: All its bytes, the flag's included; uint8.
        is_held: Whether something in the worker refers to the batch.
        is_known: Whether it was sent to the training process.
    """

    number: int
    memory: Tensor
    is_held: bool = False
    is_known: bool = False
    flags: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        self.flags = self.memory.numpy()[-1:]
        self.flags[0] = 0

    @property
    def num_bytes(self) -> int:
        """Number of bytes for pixels."""
        return len(self.memory) - _FLAG_BYTES

    @property
    def is_free(self) -> bool:
        """Return whether no process refers to its batch."""
        return not self.is_held and self.flags[0] == 0

    def release(self) -> None:
        """Note that nothing in the worker refers to the batch."""
        self.is_held = False


class WorkerMemory:
    """The slabs of one loader worker.

    Args:
        reader: Which `Mappings` of the training process receives its batches.
    """

    def __init__(self, reader: str) -> None:
        self._reader = reader
        self._worker = os.urandom(8).hex()
        self._slabs: list[_Slab] = []
        self._created = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor in a slab that is not in use."""
        num_bytes = math.prod(shape) * dtype.itemsize
        slab = next((s for s in self._slabs if s.is_free and s.num_bytes >= num_bytes), None)
        if slab is None:
            slab = self._new_slab(num_bytes)
        slab.is_held = True
        return _tensor_in(slab.memory, shape, dtype, slab.release)

    def _new_slab(self, num_bytes: int) -> _Slab:
        # Those that are free are too small: batches have grown, and they will not be used again.
        self._slabs = [slab for slab in self._slabs if not slab.is_free]
        storage = new_shared_storage(num_bytes + _FLAG_BYTES)
        slab = _Slab(self._created, torch.empty(0, dtype=torch.uint8).set_(storage))
        self._created += 1
        self._slabs.append(slab)
        return slab

    def send(self, images: Tensor) -> tuple[Any, ...] | None:
        """Return the arguments of `receive` for a batch that is sent now.

        None if its memory is not one of the slabs, or holds more than the batch.
        """
        slab = next((s for s in self._slabs if s.memory.data_ptr() == images.data_ptr()), None)
        if slab is None:
            return None
        slab.flags[0] = 1
        memory = None if slab.is_known else slab.memory
        slab.is_known = True
        in_use = tuple(slab.number for slab in self._slabs)
        layout = tuple(images.shape), images.stride(), images.dtype
        return self._reader, self._worker, slab.number, in_use, memory, layout


class Mappings:
    """The slabs that the training process has received, by worker and number.

    Attributes:
        name: What workers call it.
    """

    def __init__(self) -> None:
        self.name = os.urandom(8).hex()
        self._slabs: dict[str, dict[int, Tensor]] = {}
        _mappings[self.name] = self

    def clear(self) -> None:
        """Forget all slabs, when the workers have ended; batches that are in use remain."""
        self._slabs.clear()

    def receive(
        self, worker: str, number: int, in_use: tuple[int, ...], memory: Tensor | None
    ) -> Tensor:
        """Return the memory of a slab, and forget those that the worker no longer uses."""
        slabs = self._slabs.setdefault(worker, {})
        if memory is not None:
            slabs[number] = memory
        for forgotten in slabs.keys() - in_use:
            del slabs[forgotten]
        return slabs[number]


_mappings: weakref.WeakValueDictionary[str, Mappings] = weakref.WeakValueDictionary()


def receive(
    reader: str,
    worker: str,
    number: int,
    in_use: tuple[int, ...],
    memory: Tensor | None,
    layout: tuple[tuple[int, ...], tuple[int, ...], torch.dtype],
) -> Tensor:
    """Return the images that a worker has sent, in its memory."""
    mapped = _mappings[reader].receive(worker, number, in_use, memory)
    shape, stride, dtype = layout
    flags = mapped.numpy()[-1:]
    flat = _tensor_in(mapped, (math.prod(shape),), dtype, lambda: flags.fill(0))
    return flat.as_strided(shape, stride)


def _tensor_in(memory: Tensor, shape: tuple[int, ...], dtype: torch.dtype, release: Any) -> Tensor:
    """Return a tensor at the start of a slab; when nothing shows its memory, call `release`.

    The tensor's storage owns `pixels`, and all its views own the storage. So `pixels` lives as long
    as any of them, even if they outlive the tensor that is returned here.
    """
    pixels = memory.numpy()[: math.prod(shape) * dtype.itemsize]
    weakref.finalize(pixels, release).atexit = False
    return torch.from_numpy(pixels).view(dtype).view(shape)
