"""Processes and signals: what a trainer, its launcher and its loader workers owe each other."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Ask a trainer to save and to end."""

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_LAUNCHERS = {
    *("accelerate", "accelerate-launch", "accelerate.commands.launch", "torchrun"),
    *("accelerate.commands.accelerate_cli", "torch.distributed.run", "torch.distributed.launch"),
}
_TELLING = ("ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES")  # variables that choose devices


def signal_at_death_of_parent(number: signal.Signals) -> None:
    """Asks the kernel to send this process a signal when its parent has ended; Linux only."""
    parent = os.getppid()
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (AttributeError, OSError, TypeError):
        return
    prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel knew
        os.kill(os.getpid(), number)


@contextmanager
def children_without_signals() -> Iterator[None]:
    """Lets processes that the body forks be deaf to the signals that ask a trainer to end.

    A terminal, systemd and Slurm send them to every process of a job. Loader workers must go on
    then, for the trainer needs them until it has saved; it ends them itself. The mask is set
    before the fork, so there is no moment at which a worker could hear.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def launcher_words() -> list[str]:
    """Returns the command line of the launcher that is this process's parent, or nothing."""
    try:
        content = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return []
    words = [word.decode(errors="replace") for word in content.split(b"\0")[:-1]]
    return words if any(Path(word).name in _LAUNCHERS for word in words[:4]) else []


def typed_command(without: str | None = None) -> str:
    """Returns the command that began this process, as a person would type it again.

    Under `accelerate launch` and torchrun it is the launcher's, as far as the kernel tells it.

    Args:
        without: An option to leave out, with its value: `--stop-at-step`.
    """
    launcher = launcher_words()
    words = launcher or [sys.executable, *sys.argv]
    if Path(words[0]).name.startswith("python"):
        is_script = len(words) > 1 and Path(words[1]).name in _LAUNCHERS
        words = [Path(words[1]).name, *words[2:]] if is_script else ["python", *words[1:]]
    if without:
        words = _without_option(words, without)
    told = _variables_of(os.getppid() if launcher else os.getpid())
    return " ".join([f"{name}={shlex.quote(value)}" for name, value in told] + [shlex.join(words)])


def _variables_of(process: int) -> list[tuple[str, str]]:
    """Returns the variables that choose devices, as a process was given them."""
    try:
        content = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return []
    pairs = [entry.partition("=")[::2] for entry in content.split("\0")]
    return [(name, value) for name, value in pairs if name in _TELLING]


def _without_option(words: list[str], option: str) -> list[str]:
    """Returns a command line without an option and its value."""
    kept, skip = [], False
    for word in words:
        name, equals, _ = word.replace("_", "-").partition("=")
        if not skip and name != option:
            kept.append(word)
        skip = not skip and name == option and not equals
    return kept
