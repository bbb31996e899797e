"""Processes and signals: what a trainer, its launcher and its loader workers owe each other."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path

import psutil

from imagenet_rn50.utils.errors import InputError, RankError
from imagenet_rn50.utils.storage import redact

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""Ask a trainer to save and to end; SIGHUP, which says that the terminal is gone, unless nohup."""

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_POLL_SECONDS = 0.5
_LAUNCHERS = {
    *("accelerate", "accelerate-launch", "accelerate.commands.launch", "torchrun"),
    *("accelerate.commands.accelerate_cli", "torch.distributed.run", "torch.distributed.launch"),
}
# Variables that change what a run computes or where; every other one may be a secret.
_RELEVANT = re.compile(
    r"(ACCELERATE|NCCL|GLOO)_\w+|(CUDA|HIP|ROCR)_VISIBLE_DEVICES|CUDA_DEVICE_ORDER"
    r"|(OMP|MKL)_NUM_THREADS|MASTER_(ADDR|PORT)|(LOCAL_)?(RANK|WORLD_SIZE)|PYTORCH_(CUDA_)?ALLOC_CONF"
    r"|NVIDIA_TF32_OVERRIDE|CUBLAS_WORKSPACE_CONFIG|ATEN_CPU_CAPABILITY|ONEDNN_MAX_CPU_ISA"
)
_IRRELEVANT = re.compile(r"_VERSION$|KEY|TOKEN|SECRET|PASSWORD")  # of those

_STARTED_BY_SLURM, _RESERVED_BY_SLURM = "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"
_STARTED_BY_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def set_parent_death_signal(number: signal.Signals) -> None:
    """Sends this process a signal when its parent has ended.

    On Linux the kernel does, at once and for the last number asked for. Elsewhere a thread does,
    within a second and for each number.
    """
    parent = os.getppid()
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (AttributeError, OSError, TypeError):
        _watch(os.getpid(), parent, number)
        return
    prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel knew
        os.kill(os.getpid(), number)


@cache  # one thread is enough, and after a fork, which does not copy it, it is another process's
def _watch(process: int, parent: int, number: signal.Signals) -> None:
    """Starts a thread that sends this process a signal once it has another parent."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os.kill(process, number)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextmanager
def block_signals_in_children(
    numbers: tuple[signal.Signals, ...] = STOP_SIGNALS,
) -> Iterator[None]:
    """Lets processes that the body starts be deaf to signals, those that ask a trainer to end.

    A terminal, systemd and Slurm send them to every process of a job. Loader workers must go on
    then, for the trainer needs them until it has saved; it ends them itself. The mask is set
    before they are forked or spawned, so there is no moment at which a worker could hear; what
    comes meanwhile waits for this process.

    Args:
        numbers: The signals.
    """
    if multiprocessing.get_start_method() != "fork":
        # Spawning starts this process first, and in Python 3.11 that unblocks SIGINT and SIGTERM.
        ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kill_tree(process: int) -> None:
    """Kills a process and all that descend from it, as a machine that vanishes does.

    Launchers start each rank in a session of its own, and ranks save once their launcher ends. So
    each process is stopped before its children are looked for: what stands still starts no others,
    and hears of no death but its own.
    """
    found = [process]
    for number in found:  # grows meanwhile
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGSTOP)
        found += _children(number)
    for number in found:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def check_world_size(world_size: int, *, on_gpu: bool) -> None:
    """Refuse to work on as one process of several that did not find each other.

    Each of them would do all of the work, into the same files. Launchers state in environment
    variables how many processes they start.

    Args:
        world_size: Number of processes in the process group.
        on_gpu: Whether this process runs on a GPU.

    Raises:
        InputError: When a launcher started more processes, or fewer.
    """
    declared = read_int_env("WORLD_SIZE")
    if declared is not None and declared != world_size:
        launch = f"start them with accelerate launch or torchrun: {launch_command()}"
        raise RankError(
            f"WORLD_SIZE is {declared}, but the process group has {world_size}: the processes of "
            "this launch did not join, and each would do all of the work",
            expected=f"{declared} processes that share the work",
            found="a GPU"
            if on_gpu
            else "no GPU, and Accelerate joins processes on the CPU only "
            "if ACCELERATE_USE_CPU=1 is set",
            fix=launch if on_gpu else f"ACCELERATE_USE_CPU=1 {launch_command()}",
        )
    # torchrun and accelerate launch are themselves started once per machine, by srun say.
    num_joined = read_int_env("GROUP_WORLD_SIZE") or world_size
    slurm = read_int_env(_STARTED_BY_SLURM)
    started = {name: read_int_env(name) or 1 for name in _STARTED_BY_MPI}
    started[_STARTED_BY_SLURM] = slurm or 1
    if slurm is None and world_size == 1:
        started[_RESERVED_BY_SLURM] = read_int_env(_RESERVED_BY_SLURM) or 1
    for name, number in started.items():
        if number > 1 and num_joined == 1:
            raise RankError(
                f"{name} is {number}, but the process group has {world_size}: the tasks of this "
                "job did not join, and each would do all of the work",
                expected="one accelerate launch or torchrun on each machine, which join",
                fix="start one task per machine, and in it accelerate launch with --num_machines "
                f"and --machine_rank; if this process is meant to be the only one: unset {name}",
            )


def read_int_env(name: str) -> int | None:
    """Return the value of an environment variable that counts, None where it is not set.

    Raises:
        InputError: When it is no number.
    """
    text = os.environ.get(name)
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{name} is {text!r}", expected="a number", fix=f"unset {name}") from None


@dataclass(frozen=True)
class Launcher:
    """What started this process, if that was `accelerate launch` or torchrun.

    Attributes:
        words: Its command line; empty when nothing of the kind is the parent.
        variables: Variables that change what a run computes or where, as it was given them.
    """

    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]


@cache
def launcher() -> Launcher:
    """Returns the launcher, as it was at the first call: it may end before this process does."""
    this = psutil.Process()
    with suppress(psutil.Error):  # the parent has ended, or is another user's
        parent = psutil.Process(os.getppid())
        words = parent.cmdline()
        if any(Path(word).name in _LAUNCHERS for word in words[:4]):
            return Launcher(tuple(words), _telling(parent.environ()))
    return Launcher((), _telling(this.environ()))


def launch_command(without: str | None = None) -> str:
    """Returns the command that began this process, as a person would type it again.

    Under `accelerate launch` and torchrun it is the launcher's, as far as the kernel tells it. What
    may be secret in addresses is left out, and that is said.

    Args:
        without: An option to leave out, with its value: `--stop-at-step`.
    """
    words = list(launcher().words) or [sys.executable, *sys.argv]
    if Path(words[0]).name.startswith("python"):
        is_script = len(words) > 1 and Path(words[1]).name in _LAUNCHERS
        words = [Path(words[1]).name, *words[2:]] if is_script else ["python", *words[1:]]
    if without:
        words = _without_option(words, without)
    told = [f"{name}={shlex.quote(value)}" for name, value in launcher().variables]
    return " ".join([*told, redact_command(words)])


def redact_command(words: list[str]) -> str:
    """Returns a command as a person would type it, but for what is secret in addresses."""
    public = [redact(word) for word in words]
    return shlex.join(public) + ("" if public == words else "  # address shortened")


def _children(process: int) -> list[int]:
    """Returns the processes that a process started."""
    with suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(process).children()]
    return []


def _telling(environment: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the variables that change what a run computes or where, and no secret."""
    return tuple(
        (name, value)
        for name, value in environment.items()
        if _RELEVANT.fullmatch(name) and not _IRRELEVANT.search(name)
    )


def _without_option(words: list[str], option: str) -> list[str]:
    """Returns a command line without an option and its value."""
    kept, skip = [], False
    for word in words:
        name, equals, _ = word.replace("_", "-").partition("=")
        if not skip and name != option:
            kept.append(word)
        skip = not skip and name == option and not equals
    return kept
