"""Every use of a private API of another library, with the versions it was checked against.

A private API may change in any release. When a pin in requirements.txt moves,
tests/test_private_apis.py fails: check the functions here against the new version, then update
`CHECKED_AGAINST`.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # packing needs no torch, and starts faster without it
    import torch
    from torch import Tensor

CHECKED_AGAINST = {"torch": "2.14.1", "torchvision": "0.29.1"}
"""Versions of the pinned libraries; `terminate_workers` was checked with Python 3.11 to 3.13."""


def shut_down_workers(data_loader: Any) -> None:
    """Stop a DataLoader's persistent workers; its next pass starts new ones.

    torch stops them only when the iterator is garbage collected.
    """
    iterator = data_loader._iterator
    if iterator is None:
        return
    workers = getattr(iterator, "_workers", ())  # none in a loader without worker processes
    iterator._shutdown_workers()
    data_loader._iterator = None
    for worker in workers:
        if worker.is_alive():  # ignored SIGTERM for as long as torch waits
            worker.kill()


def new_shared_storage(num_bytes: int) -> torch.UntypedStorage:
    """Return memory that other processes can map, as torch's own collate function allocates it."""
    import torch

    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(num_bytes)
    return storage


def resize_antialiased(
    images: Tensor, size: tuple[int, int], *, out: Tensor | None = None
) -> Tensor:
    """Return images resized bilinearly with antialiasing, by the operator under torchvision's.

    torchvision's function cannot write into given memory.

    Args:
        images: (B, 3, h, w) uint8.
        size: Height and width of the result, px.
        out: Where to write; (B, 3, H, W) uint8. None for new memory.
    """
    import torch

    operator = torch.ops.aten._upsample_bilinear2d_aa
    if out is None:
        resized: Tensor = operator(images, size, False, None, None)
        return resized
    operator.out(images, size, False, None, None, out=out)
    return out


def foreach_copy_(targets: list[Tensor], sources: Any) -> None:
    """Copy many tensors in a few kernels."""
    import torch

    torch._foreach_copy_(targets, sources)


def base_of(tensor: Tensor) -> Tensor:
    """Return the tensor that `tensor` is a view of, or `tensor` itself."""
    return tensor if tensor._base is None else tensor._base


def terminate_workers(executor: ProcessPoolExecutor) -> None:
    """Send SIGTERM to the processes of an executor (public from Python 3.14 on)."""
    for process in list(executor._processes.values()):
        process.terminate()
