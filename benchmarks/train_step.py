"""Images/s of a training step, compared with a plain loop of torchvision and torch.amp.

    python -m benchmarks.train_step                          defaults for this machine, minutes
    python -m benchmarks.train_step --modes eager compile    torch.compile too, takes longer
    python -m benchmarks.train_step --profile --sizes 224    profile our step

"ours" is `Trainer.train_step` with transformers' ResNet-50 under Accelerate; "plain" is a loop over
torchvision's. Both get the same uint8 batches, from memory or from our loader, and do the same
work: copy, normalize, forward, smoothed cross-entropy, backward, SGD. Rounds alternate between
them, so that changes in machine speed affect both, and each round gives one ratio: of CPU time on
one thread on a CPU, which other processes disturb little, and of wall-clock time on a GPU. The
loader's queues are full when a round starts; `benchmarks.loaders` measures the loader alone.
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
    pack_photos,
    plain,
)
from imagenet_rn50.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
_NUM_PHOTOS = 640
_LINE = "{:>4} {:<8} {:<14} {:<5} {:<9} {:>9} {:>9}   {}"


@dataclass(frozen=True)
class Arguments:
    """Measure our training step and that of a plain loop, in alternation.

    Defaults depend on the machine: every case with batches of 256 on a GPU; a few cases with
    batches of 4 on a CPU.
    """

    sizes: tuple[int, ...] = (224, 192, 160)
    """Sides of the images, px."""
    modes: tuple[Mode, ...] = ()
    """eager, compile (torch.compile) or both."""
    layouts: tuple[Layout, ...] = ("channels_last", "contiguous")
    """Memory format of weights and images."""
    precisions: tuple[Precision, ...] = ()
    """Precision of convolutions. fp16 needs a GPU: on a CPU Accelerate silently uses fp32."""
    data: tuple[Data, ...] = ("synthetic", "loader")
    """One batch in memory, repeated, or our loader with real shards. The loader is measured only
    with channels_last, which training uses."""
    batch: int = 0
    """Images per step (0: default of the machine)."""
    steps: int = 0
    """Steps per round (0: default of the machine)."""
    rounds: int = 5
    """Measured rounds, after one warm-up round."""
    workers: int = min(8, os.cpu_count() or 1)
    """Loader workers."""
    threads: int = 1
    """torch threads on a CPU."""
    photos: Path = Path("data/bench-train")
    """Folder of the photos and shards for the loader."""
    profile: bool = False
    """Print the table of torch.profiler for our step instead of comparing."""
    out: Path = ROOT / "benchmarks" / "results" / "train_step.txt"
    """File for the printed results."""


def main() -> None:
    """Print and save images/s of both and the ratio of their times for each case."""
    arguments = for_this_machine(tyro.cli(Arguments))
    cuda = torch.cuda.is_available()
    if not cuda:
        torch.set_num_threads(arguments.threads)
    lines: list[str] = []

    def report(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    report(_title(arguments, cuda=cuda))
    if not arguments.profile:
        report(
            _LINE.format("px", "mode", "layout", "float", "data", "ours", "plain", "ours / plain")
        )
    ratios = []
    for case in _cases(arguments):
        if arguments.profile:
            report(f"\n{case}\n{_profile(case, arguments)}")
            continue
        name = (case.size, case.mode, case.layout, case.precision, case.data)
        try:
            our, their = _times(case, arguments)
        except torch.OutOfMemoryError:
            report(_LINE.format(*name, "-", "-", "out of memory"))
            continue
        ratio = [a / b for a, b in zip(our.costs, their.costs, strict=True)]
        ratios.append(median(ratio))
        spread = f"{median(ratio):.3f}  ({min(ratio):.3f} to {max(ratio):.3f})"
        speeds = (f"{our.images_per_second:.1f}", f"{their.images_per_second:.1f}")
        report(_LINE.format(*name, *speeds, spread))
    if ratios:
        report(
            f"time of ours / time of plain, median of {len(ratios)} cases: {median(ratios):.3f}  "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def for_this_machine(arguments: Arguments) -> Arguments:
    """Return `arguments` with the machine's defaults filled in."""
    cuda = torch.cuda.is_available()
    modes: tuple[Mode, ...] = ("eager", "compile") if cuda else ("eager",)
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16") if cuda else ("fp32", "bf16")
    if not cuda and "fp16" in arguments.precisions:
        raise SystemExit("--precisions fp16 needs a GPU: on a CPU Accelerate silently uses fp32")
    return replace(
        arguments,
        modes=arguments.modes or modes,
        precisions=arguments.precisions or precisions,
        batch=arguments.batch or (256 if cuda else 4),
        steps=arguments.steps or (20 if cuda else 1),
    )


def _title(arguments: Arguments, *, cuda: bool) -> str:
    """Describe the machine and the measurement."""
    if cuda:
        machine, clock = torch.cuda.get_device_name(), "wall-clock time"
    else:
        machine = f"CPU ({platform.machine()}), {arguments.threads} of {os.cpu_count()} cores"
        clock = "CPU time"
    return (
        f"{machine}, torch {torch.__version__}, ResNet-50, batch {arguments.batch}\n"
        f"load average before the first round: {os.getloadavg()[0]:.1f}\n"
        f"images/s: median of {arguments.rounds} rounds of {arguments.steps} steps, by {clock}; "
        "ours / plain: ratio of it, median and range over the rounds"
    )


def _cases(arguments: Arguments) -> Iterator[Case]:
    """Yield the cases to measure."""
    names = (arguments.modes, arguments.layouts, arguments.precisions, arguments.data)
    for size in arguments.sizes:
        for mode, layout, precision, data in itertools.product(*names):
            if data == "synthetic" or layout == "channels_last":
                yield Case(size, mode, layout, precision, data)


@dataclass(frozen=True)
class Times:
    """Seconds per round and images per round of one contender."""

    costs: list[float]
    images: int

    @property
    def images_per_second(self) -> float:
        """Median over the rounds."""
        return self.images / median(self.costs)


def _times(case: Case, arguments: Arguments) -> tuple[Times, Times]:
    """Return the times of ours and of the plain loop."""
    with tempfile.TemporaryDirectory() as run:
        trainer = _trainer_of(case, arguments, Path(run))
        steps: list[Step] = [ours(case, trainer), plain(case, trainer)]
        costs: list[list[float]] = [[], []]
        for round_index in range(arguments.rounds + 1):
            for number in (0, 1) if round_index % 2 else (1, 0):
                cost = _cost(steps[number], arguments.steps, trainer.accelerator.device)
                if round_index:
                    costs[number].append(cost)
        del steps
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    images = arguments.batch * arguments.steps
    return Times(costs[0], images), Times(costs[1], images)


def _cost(step: Step, count: int, device: torch.device) -> float:
    """Return the seconds of `count` steps: wall-clock time on a GPU, CPU time on a CPU."""
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    for _ in range(count):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def _trainer_of(case: Case, arguments: Arguments, run: Path) -> Trainer:
    """Return the trainer of a case."""
    shards = pack_photos(arguments.photos, _NUM_PHOTOS)
    return make_trainer(case, arguments.batch, arguments.workers, shards, run)


def _profile(case: Case, arguments: Arguments) -> str:
    """Return torch.profiler's table of our steps."""
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
