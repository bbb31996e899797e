"""Console output: log lines, progress bars, and streams whose errors do not stop a run."""

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
    """Return a progress bar with rate and remaining time.

    Args:
        total: Number of units.
        description: A word or two in front of the bar.
        unit: Name of the unit; the rate is shown as `unit`/s.
        initial: Units done before this process started.
        enabled: False on ranks that print nothing.

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
    """Print lines on stdout without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if _ON_TERMINAL:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
        else:
            print(text, flush=True)


logger = logging.getLogger("imagenet_rn50.console")
"""Messages for users: plain lines on stdout."""
logger.setLevel(logging.INFO)
logger.addHandler(_Console())
logger.propagate = False


def log_startup(step: str) -> None:
    """Log a step that takes seconds before the first progress bar, on the first rank only."""
    if os.environ.get("RANK", "0") == "0":
        logger.info(f"{step} ...")


@contextmanager
def ignore_output_errors() -> Iterator[None]:
    """Keep errors and blocking of stdout and stderr from stopping the body.

    A run must survive its terminal: a lost connection, a killed `| tee`, a full disk, a pipe that
    nobody reads. Output that cannot be written is dropped; its size is reported once writing works
    again.
    """
    if sys.stdin is None:  # closed: the next open file would get its descriptor
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
    """Return a stream to the same file that drops what it cannot write."""
    if stream is None:
        nowhere = io.BufferedWriter(_Output(os.open(os.devnull, os.O_WRONLY)))
        return io.TextIOWrapper(nowhere, encoding="utf-8")
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # not a file, as in a notebook or a test
        return stream
    _flush_or_discard(stream)
    with suppress(OSError):  # only a terminal opened without blocking never blocks
        flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK
        descriptor = os.open(os.ttyname(descriptor), flags)
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(descriptor)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _flush_or_discard(stream: Any) -> None:
    """Flush a stream; on failure discard it, or Python would retry and exit with code 120."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Output(io.RawIOBase):
    """Write to a descriptor; drop what it does not accept within a second."""

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
        """Write as much as the file accepts; return the number of bytes."""
        done = 0
        with suppress(OSError):
            while done < len(content) and self._poll.poll(timeout_ms):
                # PIPE_BUF bytes never block once poll reports that writing is possible.
                done += os.write(self._descriptor, content[done : done + select.PIPE_BUF])
        return done


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar that is redrawn on a terminal, and written line by line to a log."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        if _ON_TERMINAL:
            return tqdm.status_printer(file)

        def print_line(status: str) -> None:
            if status.strip():
                print(status, file=file, flush=True)

        return print_line
