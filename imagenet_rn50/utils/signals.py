"""Signals and processes: a trainer, its launcher and its loader workers."""

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
from multiprocessing.context import BaseContext
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path

from imagenet_rn50.utils.errors import InputError, RankError
from imagenet_rn50.utils.storage import redact

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""Signals that ask a trainer to save and stop; SIGHUP (terminal closed) unless nohup ignores it."""

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_POLL_SECONDS = 0.5
_END = 0  # no signal has this number
_LAUNCHERS = {
    *("accelerate", "accelerate-launch", "accelerate.commands.launch", "torchrun"),
    *("accelerate.commands.accelerate_cli", "torch.distributed.run", "torch.distributed.launch"),
}
# Variables that change what a run computes, or where; any other may be a secret.
_RELEVANT = re.compile(
    r"(ACCELERATE|NCCL|GLOO)_\w+|(CUDA|HIP|ROCR)_VISIBLE_DEVICES|CUDA_DEVICE_ORDER"
    r"|(OMP|MKL)_NUM_THREADS|MASTER_(ADDR|PORT)|(LOCAL_)?(RANK|WORLD_SIZE)|PYTORCH_(CUDA_)?ALLOC_CONF"
    r"|NVIDIA_TF32_OVERRIDE|CUBLAS_WORKSPACE_CONFIG|ATEN_CPU_CAPABILITY|ONEDNN_MAX_CPU_ISA"
)
_IRRELEVANT = re.compile(r"_VERSION$|KEY|TOKEN|SECRET|PASSWORD")  # among those

_STARTED_BY_SLURM, _RESERVED_BY_SLURM = "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"
_STARTED_BY_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_VISIBLE_GPUS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def set_parent_death_signal(number: signal.Signals) -> None:
    """Send this process a signal when its parent exits.

    On Linux the kernel sends it at once; the last call wins. Elsewhere a thread sends it within a
    second, for each call.
    """
    parent = os.getppid()
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (AttributeError, OSError, TypeError):
        _watch(os.getpid(), parent, number)
        return
    prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it exited before prctl
        os.kill(os.getpid(), number)


@cache  # one thread per process: the key has its id, for a fork does not copy threads
def _watch(process: int, parent: int, number: signal.Signals) -> None:
    """Start a thread that sends this process a signal when its parent changes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os.kill(process, number)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextmanager
def block_signals_in_children(context: BaseContext | None = None) -> Iterator[None]:
    """Block the signals that stop a trainer in processes that the body starts.

    A terminal, systemd and Slurm send them to every process of a job, but the trainer needs its
    loader workers until it has saved, and then stops them itself. The mask is set before they are
    started, so a signal never reaches them. Signals that arrive meanwhile are delivered to this
    process afterwards.

    A process has one fork server, whose children have the mask with which it was started. So all
    that may start it block the same signals, and a child unblocks those that it handles.

    Args:
        context: How the body starts processes; None: as multiprocessing does by default.
    """
    if (context or multiprocessing).get_start_method() != "fork":
        # Spawning starts the resource tracker, which in Python 3.11 unblocks SIGINT and SIGTERM.
        ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kill_tree(process: int) -> None:
    """Kill a process and all its descendants, as if the machine disappeared.

    Launchers start each rank in its own session, and ranks save when their launcher exits. So each
    process is stopped before its children are listed: a stopped process starts no children and
    handles no signals.
    """
    found = [process]
    for number in found:  # grows in the loop
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGSTOP)
        found += _children(number)
    for number in found:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def check_world_size(world_size: int, *, on_gpu: bool) -> None:
    """Check that the process group has as many processes as the launcher started.

    Otherwise each of them would do all of the work, and write the same files. Launchers give their
    number in environment variables.

    Args:
        world_size: Number of processes in the process group.
        on_gpu: Whether this process runs on a GPU.

    Raises:
        InputError: If the numbers differ.
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
    # torchrun and accelerate launch may be started once per machine, for example by srun.
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


def check_num_gpus(num_gpus: int) -> None:
    """Check that each process that was launched on this machine has a GPU of its own.

    Accelerate lets several share one, and NCCL refuses that with a traceback from each of them.
    Where a variable names one GPU, it may be another one in each process (a script between
    launcher and process sets it so): then NCCL has to tell.

    Args:
        num_gpus: Number of GPUs that this process sees.

    Raises:
        InputError: If there are fewer GPUs than processes.
    """
    num_processes = read_int_env("LOCAL_WORLD_SIZE") or 1
    visible = {name: os.environ[name] for name in _VISIBLE_GPUS if os.environ.get(name)}
    if num_processes <= num_gpus or any("," not in gpus for gpus in visible.values()):
        return
    limits = [f"{name}={gpus}" for name, gpus in visible.items()]
    raise InputError(
        f"{num_processes} processes were launched on this machine",
        expected="no more than GPUs, for each needs one of its own",
        found=" ".join([f"GPUs: {num_gpus}", *limits]),
        fix="pass --num_processes to `accelerate launch`, the number of GPUs of all machines: it "
        "precedes that of --config_file, and a run is the same on any number of GPUs",
    )


def read_int_env(name: str) -> int | None:
    """Return an environment variable as an integer, or None if it is not set.

    Raises:
        InputError: If it is not an integer.
    """
    text = os.environ.get(name)
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise InputError(
            f"{name} is {text!r}", expected="an integer", fix=f"unset {name}"
        ) from None


@dataclass(frozen=True)
class Launcher:
    """The launcher of this process: `accelerate launch` or torchrun.

    Attributes:
        words: Its command line; empty if the parent is not a launcher.
        variables: Its environment variables that change what a run computes, or where.
        process: Its process id; None if the parent is not a launcher.
    """

    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]
    process: int | None = None

    @property
    def is_elastic(self) -> bool:
        """Whether it is torchelastic: torchrun, or `accelerate launch` of several processes."""
        return "TORCHELASTIC_RUN_ID" in os.environ


@cache
def launcher() -> Launcher:
    """Return the launcher, cached because it may exit before this process."""
    import psutil  # only here and below: it costs every command a tenth of its imports

    this = psutil.Process()
    with suppress(psutil.Error):  # the parent has exited, or belongs to another user
        parent = psutil.Process(os.getppid())
        words = parent.cmdline()
        if any(Path(word).name in _LAUNCHERS for word in words[:4]):
            variables = _relevant_variables(parent.environ())
            return Launcher(tuple(words), variables, parent.pid)
    return Launcher((), _relevant_variables(this.environ()))


def kill_launcher() -> None:
    """Kill the launcher after Ctrl-C, before it prints a traceback about it.

    `accelerate launch` of one process gets the terminal's SIGINT too, and prints its traceback a
    quarter of a second later. torchelastic forwards the signal to the ranks, waits for them, and
    prints one then; on SIGTERM it would print another. Neither has an option against that.
    """
    process = launcher().process
    if process is not None and process == os.getppid():
        number = signal.SIGKILL if launcher().is_elastic else signal.SIGTERM
        with suppress(ProcessLookupError):
            os.kill(process, number)


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Exit with code 130 on Ctrl-C, without tracebacks of this process and its launcher.

    A thread does it, because a launcher allows a quarter of a second, and importing torch takes
    longer. Handlers that the body installs take precedence.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    wakeup_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = signal.signal(signal.SIGINT, lambda *_: None)

    def listen() -> None:
        while (number := os.read(reading, 1)[0]) != _END:
            if number == signal.SIGINT:
                kill_launcher()
                if os.environ.get("LOCAL_RANK", "0") == "0":
                    os.write(2, b"\ninterrupted\n")
                os._exit(128 + signal.SIGINT)

    thread = threading.Thread(target=listen, name="interrupt", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.set_wakeup_fd(wakeup_before)
        os.write(writing, bytes([_END]))  # children may hold the pipe open
        thread.join()
        os.close(reading)
        os.close(writing)


def launch_command(without: str | None = None) -> str:
    """Return the command that started this process, to be typed again.

    Under `accelerate launch` and torchrun it is the launcher's. Secrets in addresses are removed,
    and a comment says so.

    Args:
        without: An option to omit, with its value, such as `--stop-at-step`.
    """
    words = list(launcher().words) or [sys.executable, *sys.argv]
    if Path(words[0]).name.startswith("python"):
        is_script = len(words) > 1 and Path(words[1]).name in _LAUNCHERS
        words = [Path(words[1]).name, *words[2:]] if is_script else ["python", *words[1:]]
    if without:
        words = _without_option(words, without)
    variables = [f"{name}={shlex.quote(value)}" for name, value in launcher().variables]
    return " ".join([*variables, redact_command(words)])


def redact_command(words: list[str]) -> str:
    """Return a command as typed in a shell, without secrets in addresses."""
    public = [redact(word) for word in words]
    return shlex.join(public) + ("" if public == words else "  # address shortened")


def _children(process: int) -> list[int]:
    import psutil

    with suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(process).children()]
    return []


def _relevant_variables(environment: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the variables that change what a run computes, or where, without secrets."""
    return tuple(
        (name, value)
        for name, value in environment.items()
        if _RELEVANT.fullmatch(name) and not _IRRELEVANT.search(name)
    )


def _without_option(words: list[str], option: str) -> list[str]:
    """Return a command line without an option and its value."""
    kept, skip = [], False
    for word in words:
        name, equals, _ = word.replace("_", "-").partition("=")
        if not skip and name != option:
            kept.append(word)
        skip = not skip and name == option and not equals
    return kept
