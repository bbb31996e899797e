"""Preemption: signals and EC2's spot notice become a request to save and stop.

All ranks see it at one micro batch (rank_flags.py).

A signal handler may run between any two instructions, so ours does nothing; a thread reads the
signal's number from a pipe that Python's C handler writes to. That works even while the main thread
waits in C for a rank that is dead.

EC2 announces the interruption of a spot instance about two minutes ahead. One rank of each machine
polls the instance metadata service (IMDSv2) in a thread; an error is logged once, and never stops
training.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from imagenet_rn50.training.config import Spot
from imagenet_rn50.utils.logging import logger
from imagenet_rn50.utils.signals import (
    STOP_SIGNALS,
    kill_launcher,
    launcher,
    set_parent_death_signal,
)

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: "the user is invited to retry"
_ECHO_SECONDS = 1.0  # launchers and terminals send the same signal on several paths
_NO_SIGNAL = b"\0"
_EXIT_IF_REPEATED = (signal.SIGTERM, signal.SIGINT)  # the others are repeated by the system


class StopTraining(Exception):
    """Stop training after saving; raised on all ranks at the same micro batch."""


class SignalHandler:
    """Turn signals into a request to save and stop; a context manager for the main thread.

    It handles SIGTERM, SIGINT, SIGHUP (unless ignored, as under nohup), and SIGUSR1, which the
    kernel also sends when the launcher exits. A second SIGTERM or SIGINT, at least a second after
    the first, exits immediately.

    Args:
        verbose: Whether this process logs the request.

    Attributes:
        reason: What requested the stop; None before that.
    """

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self.reason: str | None = None

    @property
    def is_requested(self) -> bool:
        """Whether a stop was requested."""
        return self.reason is not None

    @property
    def is_interrupt(self) -> bool:
        """Whether Ctrl-C requested it."""
        return self.reason == _received(signal.SIGINT)

    def request(self, reason: str) -> None:
        """Request to save and stop; the first reason is kept. May be called from any thread."""
        if self.reason is not None:
            return
        self.reason = reason
        if self._verbose:
            logger.info(f"{reason}: saving and stopping; a second signal exits immediately")

    def __enter__(self) -> Self:
        self._parent = os.getppid()
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        numbers = [n for n in STOP_SIGNALS if not (is_nohup and n == signal.SIGHUP)]
        self._before = {number: signal.signal(number, _ignore) for number in numbers}
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        if launcher().words:
            # A launcher of one process dies of its SIGTERM without forwarding it.
            set_parent_death_signal(signal.SIGUSR1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._writing, _NO_SIGNAL)
        self._thread.join()
        os.close(self._reading)
        os.close(self._writing)

    def _listen(self) -> None:
        """Handle each signal; in the thread."""
        first: float | None = None
        while (byte := os.read(self._reading, 1)) != _NO_SIGNAL:
            number = byte[0]
            if number not in STOP_SIGNALS:  # SIGCHLD: torch's loader watches its workers
                continue
            if first is None:
                # Under a launcher, the kernel sends SIGUSR1 when the parent exits.
                is_under_launcher = number == signal.SIGUSR1 and bool(launcher().words)
                is_orphan = is_under_launcher and os.getppid() != self._parent
                self.request("the launcher exited" if is_orphan else _received(number))
                if self.is_interrupt and not launcher().is_elastic:  # that waits for its ranks
                    kill_launcher()
                first = time.monotonic()
            elif number in _EXIT_IF_REPEATED and time.monotonic() - first > _ECHO_SECONDS:
                os._exit(128 + number)


def _received(number: int) -> str:
    return f"received {signal.Signals(number).name}"


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: with a handler set, Python writes the signal's number to the pipe."""


POLL_SECONDS = 5.0
_TIMEOUT_SECONDS = 2.0
_TOKEN_SECONDS = 21600  # the longest that the service grants
_ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"  # as boto and the AWS CLI read it
_DISABLED_VARIABLE = "AWS_EC2_METADATA_DISABLED"
_ENDPOINT = "http://169.254.169.254"
_VENDOR = Path("/sys/devices/virtual/dmi/id/sys_vendor")
_TOKEN, _NOTICE = "latest/api/token", "latest/meta-data/spot/instance-action"
_NOT_FOUND, _UNAUTHORIZED = 404, 401

# Never through a proxy: that would answer for its own machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class MetadataService:
    """Client of the EC2 instance metadata service."""

    def __init__(self) -> None:
        self._endpoint = os.environ.get(_ENDPOINT_VARIABLE, _ENDPOINT).rstrip("/")
        self._token = ""
        self._token_until = 0.0

    def notice(self) -> str | None:
        """Return the spot interruption notice, `action at time`, or None if there is none.

        Raises:
            OSError: If the service cannot be reached.
            HTTPException: If its response is not HTTP.
            ValueError: If its response is not text.
        """
        try:
            return self._notice()
        except urllib.error.HTTPError as error:
            if error.code != _UNAUTHORIZED:
                raise
        self._token_until = 0.0  # the token was revoked: retry with a new one
        return self._notice()

    def _notice(self) -> str | None:
        """Request the notice once."""
        if time.monotonic() >= self._token_until:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
            self._token = self._fetch(_TOKEN, "PUT", lifetime)
            self._token_until = time.monotonic() + _TOKEN_SECONDS / 2
        try:
            text = self._fetch(_NOTICE, "GET", {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code == _NOT_FOUND:
                return None
            raise
        try:
            content = json.loads(text)
            return f"{content['action']} at {content['time']}"
        except (ValueError, KeyError, TypeError):
            return text.strip()  # in whatever format, it is a notice

    def _fetch(self, path: str, method: str, headers: dict[str, str]) -> str:
        """Return the body of the service's response."""
        request = urllib.request.Request(f"{self._endpoint}/{path}", method=method, headers=headers)
        with _opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
            text: str = response.read().decode()
        return text


def is_spot_watched(spot: Spot) -> bool:
    """Return whether to poll for a notice: as --spot says, by default on EC2."""
    if spot != "auto":
        return spot == "on"
    if os.environ.get(_DISABLED_VARIABLE, "").lower() == "true":
        return False
    try:
        return _VENDOR.read_text(encoding="utf-8").strip() == "Amazon EC2"
    except OSError:
        return False


@contextmanager
def watch_spot_notice(
    request: Callable[[str], None], *, enabled: bool, poll_seconds: float = POLL_SECONDS
) -> Iterator[None]:
    """Poll for a spot notice while the body runs.

    Args:
        request: Called once with the notice, from another thread.
        enabled: False on the ranks that do not poll.
        poll_seconds: Time between two polls.
    """
    if not enabled:
        yield
        return
    done = threading.Event()
    arguments = (request, done, poll_seconds)
    threading.Thread(target=_poll, args=arguments, name="spot notice", daemon=True).start()
    try:
        yield
    finally:
        done.set()  # without joining: the thread may be waiting for a response


def _poll(request: Callable[[str], None], done: threading.Event, poll_seconds: float) -> None:
    """Poll until there is a notice, or `done` is set; in the thread."""
    service, has_warned = MetadataService(), False
    while not done.is_set():
        try:
            notice = service.notice()
        except (OSError, ValueError, HTTPException) as error:
            if not has_warned:
                logger.info(
                    f"the EC2 spot notice cannot be read: {error}; training continues, and retries"
                )
            has_warned, notice = True, None
        if notice is not None:
            request(f"EC2 spot notice: {notice}")
            return
        done.wait(poll_seconds)
