"""Find the largest micro batch that fits into memory, before a run.

Each trial is a child process that takes whole training steps of one micro batch. It may run out of
memory in any way: an exception of PyTorch, a failed allocation, SIGKILL from the kernel or from a
memory limit (cgroup). Bisection over the divisors of a rank's share of the global batch finds the
largest one that fits, so the global batch stays that of the recipe.

Memory that a trial cannot see must be left free: NCCL's buffers, kernels that are loaded later,
fragmentation. That is the margin: on a GPU, a fraction of the device's memory; on a CPU, of what is
available.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from imagenet_rn50.model import build_labelled
from imagenet_rn50.recipe import Recipe, parse_recipe
from imagenet_rn50.tools.measure import make_step
from imagenet_rn50.tools.system_info import available_memory
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.formatting import counted
from imagenet_rn50.utils.signals import set_parent_death_signal

Outcome: TypeAlias = Literal["fits", "out of memory", "timed out"]

_NUM_STEPS = 2  # the first allocates the optimizer's state, the second needs it beside activations
_GPU_PRECISIONS = ("no", "bf16", "fp16")
_CPU_PRECISIONS = ("no", "bf16")  # Accelerate runs fp16 on a CPU as float32
_UNSUPPORTED = 3  # exit code of a trial in a precision that the device lacks
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_OUT_OF_MEMORY = (  # of texts that libraries print instead of raising an exception of their own
    "out of memory",
    "allocate memory",
    "bad_alloc",
    "ALLOC_FAILED",
    "Thread creation failed",
    "could not create a memory",
)


@dataclass(frozen=True)
class Setup:
    """What all trials have in common.

    Attributes:
        recipe: The recipe that would run.
        num_classes: Classes of the model.
        ranks: Processes of the launch.
        compiled: Whether the model is compiled with torch.compile.
        margin: Fraction of the memory to leave free.
        timeout: Seconds after which a trial is ended.
    """

    recipe: Recipe
    num_classes: int
    ranks: int
    compiled: bool = False
    margin: float = 0.1
    timeout: float = 300.0

    @property
    def size(self) -> int:
        """Largest side of the training images, px."""
        return max(self.recipe.data.size_at(epoch) for epoch in range(self.recipe.epochs))

    @property
    def rank_batch(self) -> int:
        """Images of one rank in an optimizer step.

        Raises:
            InputError: If the ranks cannot share the global batch equally.
        """
        if self.recipe.global_batch % self.ranks:
            raise InputError(
                f"a global batch of {self.recipe.global_batch} cannot be shared by "
                f"{self.ranks} ranks",
                expected=f"a multiple of {self.ranks}",
                fix="pass the number of processes of your launch as --ranks",
            )
        return self.recipe.global_batch // self.ranks


@dataclass(frozen=True)
class Trial:
    """One child process.

    Attributes:
        micro_batch: Images in its micro batch.
        outcome: Whether it fits.
        device: Name of the device; empty if the trial did not report it.
        peak_bytes: Most memory that it took, if it fits.
        memory_bytes: Memory of the device, or what was available on a CPU; 0 if not reported.
    """

    micro_batch: int
    outcome: Outcome
    device: str = ""
    peak_bytes: int | None = None
    memory_bytes: int = 0


@dataclass(frozen=True)
class LargestMicroBatch:
    """The result in one precision.

    Attributes:
        precision: no, bf16 or fp16.
        best: The largest micro batch that fits; None if none does.
        trials: All trials, in order.
    """

    precision: str
    best: Trial | None
    trials: list[Trial]


def candidates(rank_batch: int) -> list[int]:
    """Return the micro batches that divide a rank's batch, ascending.

    Without 1, if there are others: BatchNorm needs more than one value per channel.
    """
    divisors = [n for n in range(1, rank_batch + 1) if rank_batch % n == 0]
    return divisors[1:] or divisors


def bisect_trials(sizes: list[int], run: Callable[[int], Trial]) -> list[Trial]:
    """Run trials until the largest size that fits is known; return them in order."""
    trials: list[Trial] = []
    low, high = 0, len(sizes)  # all below `low` fit, none from `high` on
    while low < high:
        middle = (low + high) // 2
        trials.append(run(sizes[middle]))
        if trials[-1].outcome == "fits":
            low = middle + 1
        else:
            high = middle
    return trials


def find_micro_batches(
    setup: Setup, precisions: tuple[str, ...], *, on_gpu: bool
) -> list[LargestMicroBatch]:
    """Find the largest micro batch that fits, in each precision that the device has.

    Args:
        setup: What all trials have in common.
        precisions: The precisions to try; empty for all of the device.
        on_gpu: Whether to try on a GPU: the one with the least memory, if there are several.

    Raises:
        InputError: If the ranks cannot share the global batch.
        RuntimeError: If a trial fails for another reason than memory or time.
    """
    found = []
    for precision in precisions or (_GPU_PRECISIONS if on_gpu else _CPU_PRECISIONS):
        with Child(setup, precision, on_gpu=on_gpu) as child:
            try:
                trials = bisect_trials(candidates(setup.rank_batch), child.run)
            except UnsupportedError:
                _log("  not supported by this device")
                continue
        best = max(
            (trial for trial in trials if trial.outcome == "fits"),
            key=lambda trial: trial.micro_batch,
            default=None,
        )
        found.append(LargestMicroBatch(precision, best, trials))
    return found


class UnsupportedError(Exception):
    """The device lacks a precision."""


class Child:
    """A child process that runs trials in one precision, until one does not fit.

    It is started by the first trial, and anew after each that does not fit, for memory may be
    fragmented then, or the process dead. As trials that fit are followed by larger ones, the peak
    of the process is that of its last trial.
    """

    def __init__(self, setup: Setup, precision: str, *, on_gpu: bool) -> None:
        self._setup = setup
        self._precision = precision
        self._on_gpu = on_gpu
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Child:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._errors.close()

    def run(self, micro_batch: int) -> Trial:
        """Run one trial.

        Raises:
            UnsupportedError: If the device lacks the precision.
            RuntimeError: If the trial fails for another reason than memory or time.
        """
        _log(f"micro batch {micro_batch} in precision {self._precision} ...")
        trial = self._run(micro_batch)
        _log(f"  {trial.outcome}")
        if trial.outcome != "fits":
            self._end()
        return trial

    def _run(self, micro_batch: int) -> Trial:
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it is dead; its exit code says why
            process.stdin.write(f"{micro_batch}\n")
            process.stdin.flush()
        if not select.select([process.stdout], [], [], self._setup.timeout)[0]:
            return Trial(micro_batch, "timed out")
        if line := process.stdout.readline():
            return Trial(micro_batch, **json.loads(line))
        code = process.wait()
        self._errors.seek(0)
        error = self._errors.read()
        if code == _UNSUPPORTED:
            raise UnsupportedError
        if code == -signal.SIGKILL or any(text in error for text in _OUT_OF_MEMORY):
            return Trial(micro_batch, "out of memory")
        raise RuntimeError(
            f"the trial of micro batch {micro_batch} in precision {self._precision} failed with "
            f"code {code}:\n{error}"
        )

    def _start(self) -> subprocess.Popen[str]:
        self._errors.seek(0)
        self._errors.truncate()
        order = asdict(self._setup) | {
            "recipe": self._setup.recipe.model_dump(mode="json"),
            "precision": self._precision,
            "on_gpu": self._on_gpu,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "imagenet_rn50.tools.micro_batch", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # with torch.compile's workers, which are killed with it
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def _end(self) -> None:
        """Kill the process and all that it started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self._process = None


def format_micro_batches(name: str, setup: Setup, found: list[LargestMicroBatch]) -> str:
    """Return the results as a table, and as options of train_accelerate.py."""
    recipe, rank_batch = setup.recipe, setup.rank_batch
    reported = [trial for each in found for trial in each.trials if trial.device]
    device = reported[0].device if reported else "unknown device"
    lines = [
        f"{name} on {device}, {setup.size} px, {'compiled' if setup.compiled else 'eager'}, "
        f"{setup.margin:.0%} of the memory left free",
        f"global batch {recipe.global_batch}: {counted(rank_batch, 'image')} on each of "
        f"{counted(setup.ranks, 'rank')}",
        "",
        f"{'precision':<10}{'micro batch':>12}{'accumulation':>14}{'memory':>22}",
    ]
    for each in found:
        best = each.best
        if best is None:
            lines.append(f"{each.precision:<10}{'none':>12}  {_why_none(each)}")
            continue
        memory = f"{(best.peak_bytes or 0) / 2**30:.1f} of {best.memory_bytes / 2**30:.1f} GiB"
        accumulation = rank_batch // best.micro_batch
        lines.append(f"{each.precision:<10}{best.micro_batch:>12}{accumulation:>14}{memory:>22}")
    lines += [
        f"micro batch {trial.micro_batch} in precision {each.precision} was ended after "
        f"{setup.timeout:g} s and counts as too large: pass a longer --timeout"
        for each in found
        for trial in each.trials
        if trial.outcome == "timed out"
    ]
    lines.append("")
    for each in (each for each in found if each.best):
        assert each.best is not None
        lines.append(
            f"accelerate launch --mixed_precision {each.precision} ... train_accelerate.py ... "
            f"--global-batch {recipe.global_batch} --micro-batch {each.best.micro_batch}"
        )
    lines.append(
        f"BatchNorm normalises over the micro batch, {recipe.micro_batch} in the recipe: with "
        "another one it is another run"
    )
    return "\n".join(lines)


def _why_none(found: LargestMicroBatch) -> str:
    smallest = min(found.trials, key=lambda trial: trial.micro_batch)
    return f"micro batch {smallest.micro_batch}: {smallest.outcome}"


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- in the child process


def _main() -> None:
    """Run a trial for each micro batch on stdin; print its outcome as a line of JSON."""
    set_parent_death_signal(signal.SIGKILL)
    order: dict[str, Any] = json.loads(sys.argv[1])
    # Only outcomes go to the pipe: libraries may print, and processes of theirs keep stdout open.
    outcomes = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    recipe = parse_recipe(order["recipe"], source="the recipe")
    setup = Setup(**{name: order[name] for name in Setup.__annotations__} | {"recipe": recipe})
    precision = order["precision"]
    device, memory = _open_gpu(setup, precision) if order["on_gpu"] else _open_cpu(setup)
    for line in sys.stdin:
        report = _report(setup, precision, int(line), device)
        name = torch.cuda.get_device_name(device) if order["on_gpu"] else "CPU"
        print(json.dumps(report | {"device": name, "memory_bytes": memory}), file=outcomes)
        outcomes.flush()


def _report(setup: Setup, precision: str, micro_batch: int, device: torch.device) -> dict[str, Any]:
    """Run a trial; return its outcome."""
    try:
        peak = take_steps(setup, precision, micro_batch, device)
        return {"outcome": "fits", "peak_bytes": peak}
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        return {"outcome": "out of memory"}


def _open_gpu(setup: Setup, precision: str) -> tuple[torch.device, int]:
    """Choose the GPU with the least memory, and limit this process to what the margin leaves."""
    numbers = range(torch.cuda.device_count())
    sizes = [torch.cuda.get_device_properties(number).total_memory for number in numbers]
    device = torch.device("cuda", sizes.index(min(sizes)))
    torch.cuda.set_device(device)
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise SystemExit(_UNSUPPORTED)
    torch.backends.cudnn.benchmark = True  # as in training: some algorithms take memory
    free, memory = torch.cuda.mem_get_info(device)
    allowed = max(free - setup.margin * memory, 0) / memory
    torch.cuda.set_per_process_memory_fraction(allowed, device)
    return device, memory


def _open_cpu(setup: Setup) -> tuple[torch.device, int]:
    """Limit this process to the memory that the margin leaves; return what was available.

    Without a limit, a trial that needs too much would make the kernel kill some process.
    """
    of_space, of_data = map(resource.getrlimit, (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    finite = [soft for soft, _ in (of_space, of_data) if soft != resource.RLIM_INFINITY]
    available = min([available_memory(), *finite])
    allowed = int((1 - setup.margin) * available)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, of_data[1]))
    if of_space[0] != resource.RLIM_INFINITY:
        allowed = int((1 - setup.margin) * of_space[0])
        resource.setrlimit(resource.RLIMIT_AS, (allowed, of_space[1]))
    if _OOM_SCORE.exists():  # Linux only: kill this process before others
        _OOM_SCORE.write_text("1000", encoding="utf-8")
    return torch.device("cpu"), available


def take_steps(setup: Setup, precision: str, micro_batch: int, device: torch.device) -> int:
    """Take whole training steps; return the most memory that this process had in use, bytes."""
    on_gpu = device.type == "cuda"
    torch.compiler.reset()  # of the trial before; another size would be compiled as dynamic
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    step = make_step(
        device,
        setup.recipe,
        precision,
        micro_batch,
        setup.size,
        setup.num_classes,
        accumulation=min(setup.rank_batch // micro_batch, 2),  # more add nothing
        compiled=setup.compiled,
    )
    # Training also holds the next micro batch, normalised, and DistributedDataParallel's buckets.
    held = [torch.zeros(micro_batch, 3, setup.size, setup.size, device=device)] * on_gpu
    if setup.ranks > 1:
        held.append(torch.zeros(_num_parameters(setup), device=device))
    for _ in range(_NUM_STEPS):
        step()
    if on_gpu:
        return torch.cuda.max_memory_reserved(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 2**10  # there bytes, elsewhere KiB


def _num_parameters(setup: Setup) -> int:
    with torch.device("meta"):
        model = build_labelled(setup.recipe.model, [str(n) for n in range(setup.num_classes)])
    return sum(parameter.numel() for parameter in model.parameters())


def _is_out_of_memory(error: Exception) -> bool:
    is_own_type = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_own_type or any(text in str(error) for text in _OUT_OF_MEMORY)


if __name__ == "__main__":
    _main()
