"""How fast the devices of this machine add up gradients over each other."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

_ROUNDS = 10


def measure_all_reduce(world_size: int, *, backend: str = "nccl", num_floats: int) -> float:
    """Measures the sum of a tensor over processes of this machine, one a device.

    Args:
        world_size: How many take part, at least 2.
        backend: nccl for GPUs; gloo for the CPU.
        num_floats: Size of the tensor, as large as the gradients of a model, float32.

    Returns:
        Bus bandwidth in GB/s: 2 (n - 1) / n x bytes / seconds, which is what each link carries
        whatever n is (NVIDIA's nccl-tests, PERFORMANCE.md).
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, backend, num_floats, Path(folder))
        spawn(_take_part, arguments, nprocs=world_size)
        seconds = float((Path(folder) / "seconds").read_text(encoding="utf-8"))
    return 2 * (world_size - 1) / world_size * 4 * num_floats / seconds / 1e9


def _take_part(rank: int, world_size: int, backend: str, num_floats: int, folder: Path) -> None:
    """Is one of the processes; the first notes how long a sum took."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    meeting = f"file://{folder.absolute() / 'store'}"
    distributed.init_process_group(backend, meeting, rank=rank, world_size=world_size)
    gradients = torch.ones(num_floats, device=device)
    distributed.all_reduce(gradients)  # connections are made with the first
    assert gradients[0].item() == world_size
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        distributed.all_reduce(gradients)
    if backend == "nccl":
        torch.cuda.synchronize(device)
    if rank == 0:
        seconds = (time.perf_counter() - began) / _ROUNDS
        (folder / "seconds").write_text(str(seconds), encoding="utf-8")
    distributed.destroy_process_group()
