"""How long a checkpoint blocks training, and the cost of synchronizing save requests across ranks.

    python -m benchmarks.checkpoint_stall

Saves a ResNet-50 with momentum buffers and EMA weights, alternating between an asynchronous save
(copy to host memory, then write, hash and fsync in a thread, as in training) and a synchronous one.
Steps of a fixed length run during each asynchronous save, to measure how much it slows them down.
Then two processes exchange their flags after each step, as ranks do.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import distributed, multiprocessing

from imagenet_rn50.classes import Classes
from imagenet_rn50.learning_rate import Plateau
from imagenet_rn50.model import build_model
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.runs.checkpoint import commit, folder_name
from imagenet_rn50.training.optim import Ema, build_optimizer
from imagenet_rn50.training.progress import Progress
from imagenet_rn50.training.rank_flags import RankFlags
from imagenet_rn50.training.state import (
    StateDict,
    TrainState,
    copy_to_cpu,
    num_bytes,
    write_state,
)

_NUM_CLASSES = 1000
_STEP_SECONDS = 0.1  # of one GPU at about 2,500 images/s and 256 images in a step
_NUM_STEPS = 30
_NUM_EXCHANGES = 200


@dataclass(frozen=True)
class Arguments:
    """Measure saves of a ResNet-50."""

    rounds: int = 5
    """Number of saves of each kind."""
    folder: Path | None = None
    """Folder to save in (default: the system's temporary folder)."""


def main() -> None:
    """Print the median and maximum of each measurement."""
    arguments = tyro.cli(Arguments)
    torch.set_num_threads(1)
    state = _train_state()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        _time_saves(state, Path(name), arguments.rounds)
    _time_flag_exchange()


def _time_saves(state: TrainState, folder: Path, rounds: int) -> None:
    """Measure how long asynchronous and synchronous saves block the loop."""
    stalls: list[float] = []
    whole: list[float] = []
    beside: list[float] = []
    alone = _steps()
    copied: StateDict = {}
    with ThreadPoolExecutor(max_workers=1) as thread:
        for i in range(rounds):
            start = time.perf_counter()
            copied = copy_to_cpu(state.state_dict())
            stalls.append(time.perf_counter() - start)
            writing = thread.submit(_write, copied, folder, 2 * i)
            beside += _steps(writing.done)
            writing.result()

            start = time.perf_counter()
            _write(copy_to_cpu(state.state_dict()), folder, 2 * i + 1)
            whole.append(time.perf_counter() - start)
    print(f"ResNet-50 with momentum buffers and EMA weights: {num_bytes(copied) / 1e6:.0f} MB, CPU")
    _print("async save, blocks for copy", stalls)
    _print("sync save, blocks for copy and write", whole)
    _print("step, no save running", alone)
    _print("step during async save", beside or [float("nan")])


def _write(state: dict[str, Any], folder: Path, number: int) -> None:
    """Write, hash and fsync a checkpoint."""
    final = folder / folder_name(number)
    temporary = final.with_suffix(".partial")
    temporary.mkdir()
    write_state(temporary, state)
    commit(temporary, final, number, is_best=False, metadata={})


def _steps(until: Callable[[], bool] | None = None) -> list[float]:
    """Run steps that wait for a device and then do some Python; return the seconds of each."""
    seconds: list[float] = []
    while not until() if until else len(seconds) < _NUM_STEPS:
        start = time.perf_counter()
        time.sleep(_STEP_SECONDS)
        sum(range(10_000))
        seconds.append(time.perf_counter() - start)
    return seconds


def _train_state() -> TrainState:
    """Return a ResNet-50 after one step, so that it has momentum buffers."""
    Accelerator(cpu=True)  # AcceleratedOptimizer needs its state
    recipe = Recipe(ema_decay=0.999)
    wnids = tuple(f"n{number:08d}" for number in range(_NUM_CLASSES))
    model = build_model(recipe.model, Classes(wnids, wnids))
    optimizer = AcceleratedOptimizer(build_optimizer(model, recipe.optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    ema, progress = Ema(model, recipe.ema_decay or 0.0), Progress.of(recipe, 1000)
    return TrainState(model, optimizer, None, ema, Plateau(recipe), progress)


def _time_flag_exchange() -> None:
    """Measure the exchange of flags between two processes after each step."""
    with tempfile.TemporaryDirectory() as name:
        context = multiprocessing.get_context("spawn")
        queue = context.SimpleQueue()
        address = f"file://{name}/rendezvous"
        ranks = [
            context.Process(target=_exchange_flags, args=(r, address, queue)) for r in range(2)
        ]
        for rank in ranks:
            rank.start()
        seconds = queue.get()
        for rank in ranks:
            rank.join()
    _print("flag exchange of two processes", seconds)
    share = statistics.median(seconds) / _STEP_SECONDS
    print(f"{share:.3%} of a step of {_STEP_SECONDS:g} s")


def _exchange_flags(rank: int, address: str, queue: Any) -> None:
    """Run one rank."""
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    flags, seconds = RankFlags(2), []
    for _ in range(_NUM_EXCHANGES):
        time.sleep(_STEP_SECONDS / 10)
        start = time.perf_counter()
        flags.exchange(stop=False)
        seconds.append(time.perf_counter() - start)
    flags.close()
    if rank == 0:
        queue.put(seconds)
    distributed.barrier()
    distributed.destroy_process_group()


def _print(what: str, seconds: list[float]) -> None:
    """Print the median and the maximum."""
    median, slowest = statistics.median(seconds), max(seconds)
    print(f"{what:<36} {1e3 * median:9.2f} ms (median), {1e3 * slowest:9.2f} ms (max)")


if __name__ == "__main__":
    main()
