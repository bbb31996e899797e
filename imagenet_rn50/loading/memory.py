"""Memory of loader workers: kept when freed, and handed to the training process without a copy."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


@cache
def keep_freed_memory() -> None:
    """Tells the C library to keep freed memory instead of returning it to the system.

    Every picture needs some buffers of a hundred kB. By default each is fresh memory from the
    system, and touching it page by page costs up to a tenth of the time that a picture takes.
    Meant for loader workers, which do nothing else. Without glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    mallopt(_M_TRIM_THRESHOLD, 256 << 20)
    mallopt(_M_TOP_PAD, 16 << 20)


def empty_pictures(count: int, height: int, width: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Returns memory for pictures; (count, 3, height, width) of `dtype`, channels last.

    Channels last is how decoders write and how the model reads, so pixels are never transposed. In
    a loader worker the memory is shared with the process that trains.
    """
    shape = (count, height, width, 3)
    if get_worker_info() is None:
        pictures = torch.empty(shape, dtype=dtype)
    else:
        num_bytes = count * height * width * 3 * dtype.itemsize
        # What torch's own collate function allocates, too.
        storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(num_bytes)
        pictures = torch.empty(0, dtype=dtype).set_(storage).view(shape)
    return pictures.permute(0, 3, 1, 2)
