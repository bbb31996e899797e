"""The one error that users are meant to see, and how entry points show it.

    ValueError
    └── InputError      what the user gave cannot be used: exit code 2, no traceback
        └── RankError   the same, where one rank of several may be the only one to meet it

Everything else that is raised is a bug or a broken machine, and keeps its traceback.
"""

from __future__ import annotations

import errno
import math
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_WRONG_INPUT = 2
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ABOUT_A_PATH = _FULL | {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}
EXIT_OUTPUT_CLOSED = 128 + signal.SIGPIPE
"""As a shell reports a program that SIGPIPE ended."""


class InputError(ValueError):
    """What the user gave cannot be used.

    Args:
        problem: One sentence: what is wrong, naming the file, key or value.
        expected: What would have been right.
        found: What was there instead.
        fix: What to do about it, as a command where there is one.
    """

    def __init__(
        self,
        problem: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        fix: str | None = None,
    ) -> None:
        details = (("expected", expected), ("found", found), ("fix", fix))
        lines = [problem] + [f"  {word + ':':<9} {text}" for word, text in details if text]
        super().__init__("\n".join(lines))


class RankError(InputError):
    """What one rank may meet alone, in what it reads: a damaged sample say, which others never see.

    It is a class and no mark on an error, so that it comes through a loader's worker, which makes
    errors anew from their type and text.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def require_at_least(name: str, value: float, least: float) -> None:
    """Raise `InputError` if `value`, given as `name` (such as `--rows`), is less than `least`."""
    if not value >= least:
        raise InputError(f"{name} must be at least {least:g}, got {value:g}")


def require_positive(name: str, value: float) -> None:
    """Raise `InputError` if `value`, given as `name`, is not a finite number above 0."""
    if not 0 < value < math.inf:
        raise InputError(f"{name} must be a finite number above 0, got {value:g}")


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turn an `InputError` into its message on stderr and exit code 2, in every entry point.

    Under a launcher every rank fails alike, so only the first of a machine prints; a `RankError` is
    printed by each rank that meets it. An `OSError` about a path, such as a full disk, is reported
    likewise. If the reader of the output is gone (`... | head`), exit without a traceback; any
    other broken pipe, such as a connection's, keeps its own.

    Raises:
        SystemExit: With code 2 when the body raised `InputError`, 141 when nobody reads the output.
    """
    try:
        try:
            with _path_errors_as_input_errors():
                yield
        except InputError as error:
            if isinstance(error, RankError) or int(os.environ.get("LOCAL_RANK", "0")) == 0:
                print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(EXIT_WRONG_INPUT) from None
        finally:
            if sys.stdout:  # what is still buffered would fail at exit, where nothing catches it
                sys.stdout.flush()
    except BrokenPipeError:
        closed = [fd for fd in (1, 2) if _is_closed_pipe(fd)]
        if not closed:
            raise
        null = os.open(os.devnull, os.O_WRONLY)
        for fd in closed:
            os.dup2(null, fd)
        raise SystemExit(EXIT_OUTPUT_CLOSED) from None


def _is_closed_pipe(fd: int) -> bool:
    """Return whether `fd` is a pipe or socket whose reader is gone."""
    poll = select.poll()
    poll.register(fd, 0)  # errors and hang-ups are always reported
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


@contextmanager
def _path_errors_as_input_errors() -> Iterator[None]:
    """Raise an `OSError` about a path that users can fix, such as a full disk, as InputError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _ABOUT_A_PATH:
            raise
        fix = "free some space, or name another place" if error.errno in _FULL else None
        where = error.filename or "the output"
        raise InputError(f"{where}: {error.strerror}", fix=fix) from None
