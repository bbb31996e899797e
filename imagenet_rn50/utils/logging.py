"""What a person sees while something runs: one kind of progress bar, output that cannot fail."""

from __future__ import annotations

import io
import logging
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tqdm import tqdm

# A terminal is redrawn ten times a second; a log file gets a line every ten seconds.
_ON_TERMINAL = sys.stderr is not None and sys.stderr.isatty()
_REDRAW_SECONDS = 0.1 if _ON_TERMINAL else 10.0


def progress_bar(
    *, total: int, description: str, unit: str = "img", initial: int = 0, enabled: bool = True
) -> tqdm[Any]:
    """Makes a bar that shows the rate and the remaining time.

    Args:
        total: How many units there are in all.
        description: What is going on, in a word or two.
        unit: What is counted; the rate is shown as `unit`/s.
        initial: How many units were done before this process began.
        enabled: False on the ranks that stay silent.

    Returns:
        A bar; call `update(n)` on it and use it as a context manager.
    """
    return _Bar(
        total=total,
        initial=initial,
        desc=f"{description:<10}",
        unit=unit,
        unit_scale=False,
        mininterval=_REDRAW_SECONDS,
        dynamic_ncols=True,
        disable=not enabled,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
        "[{elapsed}<{remaining}, {rate_fmt}{postfix}]",
    )


class _Console(logging.Handler):
    """Prints lines on stdout without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if _ON_TERMINAL:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
        else:
            print(text, flush=True)


logger = logging.getLogger("imagenet_rn50.console")
"""What users read: plain lines on stdout."""
logger.setLevel(logging.INFO)
logger.addHandler(_Console())
logger.propagate = False


@contextmanager
def ignore_output_errors() -> Iterator[None]:
    """Let stdout and stderr neither fail nor block while the body runs.

    A training outlives its terminal: a connection breaks, `| tee` is killed, the disk of the log is
    full, nobody reads. What cannot be written is dropped, and how much is said once it can again.
    """
    if sys.stdin is None:  # closed; its number would become another file's
        os.open(os.devnull, os.O_RDONLY)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_lasting, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
        for stream in before:
            _flush_or_discard(stream)


def _lasting(stream: Any) -> Any:
    """Return a stream that writes where another does, or nowhere."""
    if stream is None:
        nowhere = io.BufferedWriter(_Output(os.open(os.devnull, os.O_WRONLY)))
        return io.TextIOWrapper(nowhere, encoding="utf-8")
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # not a file: what a notebook or a test puts there
        return stream
    _flush_or_discard(stream)
    with suppress(OSError):  # a terminal blocks unless it is opened so that it does not
        flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK
        descriptor = os.open(os.ttyname(descriptor), flags)
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(descriptor)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _flush_or_discard(stream: Any) -> None:
    """Flush a stream; where that fails, Python would exit with code 120, for it tries again."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Output(io.RawIOBase):
    """The file of a descriptor; what it does not take within a second is dropped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._num_dropped = 0
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        content = bytes(data)
        if self._num_dropped:
            notice = b"\n[%d bytes of output could not be written]\n" % self._num_dropped
            if self._put(notice, timeout_ms=0) < len(notice):
                self._num_dropped += len(content)
                return len(content)
        self._num_dropped = len(content) - self._put(content, timeout_ms=1000)
        return len(content)

    def _put(self, content: bytes, *, timeout_ms: int) -> int:
        """Write as much as the file takes, and return how much that is."""
        done = 0
        with suppress(OSError):
            while done < len(content) and self._poll.poll(timeout_ms):
                # So much never blocks once some can be written.
                done += os.write(self._descriptor, content[done : done + select.PIPE_BUF])
        return done


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar that is redrawn in place on a terminal, and written line by line into a log."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        if _ON_TERMINAL:
            return tqdm.status_printer(file)

        def print_line(status: str) -> None:
            if status.strip():
                print(status, file=file, flush=True)

        return print_line
