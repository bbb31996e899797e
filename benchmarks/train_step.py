"""Images/s of a training step: ours beside a plain loop of torchvision and torch.amp.

    python -m benchmarks.train_step                          what the machine can do in minutes
    python -m benchmarks.train_step --modes eager compile    compiled too, which takes longer
    python -m benchmarks.train_step --profile --sizes 224    where the time of our step goes

Ours is `Trainer.train_step`, as training calls it, on transformers' ResNet-50 under Accelerate. The
plain loop is written out here, on torchvision's. Both get the same uint8 batches, from memory or
from our loader, and do the same work: copy, normalise, forward, smoothed cross-entropy, backward,
SGD. They take turns, round by round, so that a change in the machine's speed meets both alike; a
ratio is taken in each round. On a CPU it is a ratio of the process's CPU time on one thread, which
others on the machine disturb little; on a GPU of the time on the clock. The loader's queues are
full when a round begins: how fast it is by itself, `benchmarks.loaders` says.
"""

from __future__ import annotations

import gc
import itertools
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
import tyro

from benchmarks.train_step_contenders import (
    Case,
    Data,
    Layout,
    Mode,
    Precision,
    Step,
    make_trainer,
    ours,
    plain,
)
from imagenet_rn50.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
_LINE = "{:>4} {:<8} {:<14} {:<5} {:<9} {:>9} {:>9}   {}"


@dataclass(frozen=True)
class Arguments:
    """Times training steps of ours and of a plain loop in turn.

    What is left out is chosen for the machine: on a GPU everything, in batches of 256; on a CPU
    what takes minutes, in batches of 4.
    """

    sizes: tuple[int, ...] = (224, 192, 160)
    """Sides of the pictures, px."""
    modes: tuple[Mode, ...] = ()
    """Compiled or not."""
    layouts: tuple[Layout, ...] = ("channels_last", "contiguous")
    """Order of the weights and pictures in memory."""
    precisions: tuple[Precision, ...] = ()
    """Floats of convolutions. fp16 needs a GPU: on a CPU Accelerate quietly stays in fp32."""
    data: tuple[Data, ...] = ("synthetic", "loader")
    """The same batch from memory again and again, or our loader over real shards; the loader is
    timed with channels_last alone, which is what training uses."""
    batch: int = 0
    """Pictures in a step."""
    steps: int = 0
    """Steps of each in a round."""
    rounds: int = 5
    """Counted rounds, after one that is not counted."""
    workers: int = min(8, os.cpu_count() or 1)
    """Loader processes."""
    threads: int = 1
    """Threads of torch, on a CPU."""
    photos: Path = Path("data/bench-train")
    """Where the shards are kept that the loader reads."""
    profile: bool = False
    """Print where the time of our step goes, by torch.profiler, instead of comparing."""
    out: Path = ROOT / "benchmarks" / "results" / "train_step.txt"
    """Where the results go, as printed."""


def main() -> None:
    """Prints and saves images/s of both, and the ratio of their times, case by case."""
    arguments = for_this_machine(tyro.cli(Arguments))
    cuda = torch.cuda.is_available()
    if not cuda:
        torch.set_num_threads(arguments.threads)
    lines: list[str] = []

    def tell(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    tell(_title(arguments, cuda=cuda))
    if not arguments.profile:
        tell(_LINE.format("px", "mode", "layout", "float", "data", "ours", "plain", "ours / plain"))
    ratios = []
    for case in _cases(arguments):
        if arguments.profile:
            tell(f"\n{case}\n{_profile(case, arguments)}")
            continue
        name = (case.size, case.mode, case.layout, case.precision, case.data)
        try:
            our, their = _times(case, arguments)
        except torch.OutOfMemoryError:
            tell(_LINE.format(*name, "-", "-", "out of memory"))
            continue
        ratio = [a / b for a, b in zip(our.costs, their.costs, strict=True)]
        ratios.append(median(ratio))
        spread = f"{median(ratio):.3f}  ({min(ratio):.3f} to {max(ratio):.3f})"
        speeds = (f"{our.images_per_second:.1f}", f"{their.images_per_second:.1f}")
        tell(_LINE.format(*name, *speeds, spread))
    if ratios:
        tell(
            f"time of ours / time of plain, median of {len(ratios)} cases: {median(ratios):.3f}  "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def for_this_machine(arguments: Arguments) -> Arguments:
    """Fills in what was left to the machine."""
    cuda = torch.cuda.is_available()
    modes: tuple[Mode, ...] = ("eager", "compile") if cuda else ("eager",)
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16") if cuda else ("fp32", "bf16")
    if not cuda and "fp16" in arguments.precisions:
        raise SystemExit("fp16 needs a GPU: on a CPU Accelerate quietly stays in fp32")
    return replace(
        arguments,
        modes=arguments.modes or modes,
        precisions=arguments.precisions or precisions,
        batch=arguments.batch or (256 if cuda else 4),
        steps=arguments.steps or (20 if cuda else 1),
    )


def _title(arguments: Arguments, *, cuda: bool) -> str:
    """Says what was measured, and on what."""
    if cuda:
        machine, clock = torch.cuda.get_device_name(), "time on the clock"
    else:
        machine = f"CPU ({platform.machine()}), {arguments.threads} of {os.cpu_count()} cores"
        clock = "CPU time"
    return (
        f"{machine}, torch {torch.__version__}, ResNet-50, batch {arguments.batch}\n"
        f"load of the machine before the first round: {os.getloadavg()[0]:.1f}\n"
        f"images/s: median of {arguments.rounds} rounds of {arguments.steps} steps, by {clock}; "
        "ours / plain: ratio of it, median and range over the rounds"
    )


def _cases(arguments: Arguments) -> Iterator[Case]:
    """Yields what is to be timed."""
    names = (arguments.modes, arguments.layouts, arguments.precisions, arguments.data)
    for size in arguments.sizes:
        for mode, layout, precision, data in itertools.product(*names):
            if data == "synthetic" or layout == "channels_last":
                yield Case(size, mode, layout, precision, data)


@dataclass(frozen=True)
class Times:
    """What the rounds of one contender cost."""

    costs: list[float]
    images: int

    @property
    def images_per_second(self) -> float:
        """Median over the rounds."""
        return self.images / median(self.costs)


def _times(case: Case, arguments: Arguments) -> tuple[Times, Times]:
    """Returns what the rounds of ours and of the plain loop cost."""
    with tempfile.TemporaryDirectory() as run:
        trainer = _trainer_of(case, arguments, Path(run))
        steps: list[Step] = [ours(case, trainer), plain(case, trainer)]
        costs: list[list[float]] = [[], []]
        for turn in range(arguments.rounds + 1):
            for number in (0, 1) if turn % 2 else (1, 0):
                cost = _cost(steps[number], arguments.steps, trainer.accelerator.device)
                if turn:
                    costs[number].append(cost)
        del steps
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    images = arguments.batch * arguments.steps
    return Times(costs[0], images), Times(costs[1], images)


def _cost(step: Step, count: int, device: torch.device) -> float:
    """Returns what some steps cost: seconds on the clock on a GPU, of CPU time without one."""
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    began = clock()
    for _ in range(count):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - began


def _trainer_of(case: Case, arguments: Arguments, run: Path) -> Trainer:
    """Make the trainer of a case."""
    return make_trainer(case, arguments.batch, arguments.workers, arguments.photos, run)


def _profile(case: Case, arguments: Arguments) -> str:
    """Returns torch.profiler's table of some of our steps."""
    with tempfile.TemporaryDirectory() as run:
        trainer = _trainer_of(case, arguments, Path(run))
        step = ours(case, trainer)
        _cost(step, 3, trainer.accelerator.device)
        with torch.profiler.profile() as profiler:
            _cost(step, arguments.steps, trainer.accelerator.device)
    on_gpu = trainer.accelerator.device.type == "cuda"
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table: str = profiler.key_averages().table(
        sort_by=order, row_limit=15, max_name_column_width=40
    )
    return table


if __name__ == "__main__":
    main()
