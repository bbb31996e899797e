"""Being told to end: signals and notices become a flag that all ranks see at one micro batch.

A handler may run between any two instructions, so it does nothing; a thread reads which signal came
from a pipe that Python's C handler writes to. That works even while the main thread waits in C for
a rank that is dead.

EC2's notice that a spot machine will be taken away, some two minutes ahead.

The instance metadata service (IMDSv2) is asked every few seconds, by one rank of each machine in a
thread. What goes wrong with that is told once, and never ends a training.
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
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import distributed

from imagenet_rn50.training.config import Spot
from imagenet_rn50.utils.logging import logger
from imagenet_rn50.utils.signals import STOP_SIGNALS, launcher, set_parent_death_signal

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: "the user is invited to retry"
_ECHO_SECONDS = 1.0  # launchers and terminals send the same signal along several ways
_NO_SIGNAL = b"\0"
_INSISTING = (signal.SIGTERM, signal.SIGINT)  # the others come again by themselves


class StopTraining(Exception):
    """Training ends here, on all ranks alike, after saving."""


class SignalHandler:
    """Hears that the process shall end; a context manager for the main thread.

    SIGTERM and SIGINT ask for it, SIGHUP where it is not ignored as nohup does, and SIGUSR1, which
    the kernel also sends when the launcher has ended. A second SIGTERM or SIGINT, a second or more
    after the first, ends the process at once.

    Args:
        verbose: Whether this process tells the user.

    Attributes:
        reason: Who asked, once anybody did.
    """

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self.reason: str | None = None

    @property
    def is_requested(self) -> bool:
        """Whether anybody has asked."""
        return self.reason is not None

    def request(self, reason: str) -> None:
        """Asks to save and end; the first reason counts. May be called by any thread."""
        if self.reason is not None:
            return
        self.reason = reason
        if self._verbose:
            logger.info(f"{reason}: saving and ending. A second signal ends at once.")

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
            # A launcher of one process dies of its SIGTERM and tells the trainer nothing.
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
        """Acts on each signal as it comes."""
        first: float | None = None
        while (byte := os.read(self._reading, 1)) != _NO_SIGNAL:
            number = byte[0]
            if number not in STOP_SIGNALS:  # torch's loader hears of its workers' ends
                continue
            if first is None:
                # Any parent may end; of a launcher's end alone the kernel tells.
                is_told = number == signal.SIGUSR1 and bool(launcher().words)
                is_orphan = is_told and os.getppid() != self._parent
                name = signal.Signals(number).name
                self.request("the launcher has ended" if is_orphan else f"received {name}")
                first = time.monotonic()
            elif number in _INSISTING and time.monotonic() - first > _ECHO_SECONDS:
                os._exit(128 + number)


class Requests(NamedTuple):
    """What any rank wishes for.

    Attributes:
        stop: To save and end.
        save: To save.
    """

    stop: bool
    save: bool


class RankFlags:
    """Lets all ranks know at the same micro batch what any of them wishes.

    The exchange runs in the background of a micro batch, on the host, and its answer is read after
    the next: so it costs the device nothing, and a wish is heard one later. On one rank at once.

    Args:
        world_size: Number of ranks.
    """

    def __init__(self, world_size: int) -> None:
        self._group = _group_of_hosts() if world_size > 1 else None
        self._under_way: tuple[Any, torch.Tensor] | None = None

    def exchange(self, *, stop: bool, save: bool = False) -> Requests:
        """Tells this rank's wishes and returns those of all; every rank calls it equally often."""
        if self._group is None:
            return Requests(stop, save)
        agreed = self._read()
        told = torch.tensor([stop, save], dtype=torch.uint8)
        work = distributed.all_reduce(
            told, op=distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        self._under_way = work, told
        return agreed

    def close(self) -> None:
        """Waits for the exchange under way, so that no rank ends in the middle of it."""
        with suppress(RuntimeError):  # another rank is dead, which is told elsewhere
            self._read()

    def _read(self) -> Requests:
        """Return what the exchange under way brings."""
        if self._under_way is None:
            return Requests(stop=False, save=False)
        work, told = self._under_way
        work.wait()
        self._under_way = None
        stop, save = told.tolist()
        return Requests(bool(stop), bool(save))


def _group_of_hosts() -> distributed.ProcessGroup:
    """Return all ranks as a group that talks over the hosts' network, whatever their devices."""
    group = distributed.new_group(backend="gloo")
    assert isinstance(group, distributed.ProcessGroup)  # of all ranks, so this one is a member
    return group


def _ignore(number: int, frame: FrameType | None) -> None:
    """Is there so that Python writes the signal's number to the pipe."""


POLL_SECONDS = 5.0
_TIMEOUT_SECONDS = 2.0
_TOKEN_SECONDS = 21600  # the longest that the service grants
_ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"  # as boto and the AWS CLI read it
_DISABLED_VARIABLE = "AWS_EC2_METADATA_DISABLED"
_ENDPOINT = "http://169.254.169.254"
_VENDOR = Path("/sys/devices/virtual/dmi/id/sys_vendor")
_TOKEN, _NOTICE = "latest/api/token", "latest/meta-data/spot/instance-action"
_NOT_FOUND, _UNAUTHORIZED = 404, 401

# A proxy would be asked about its own machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class MetadataService:
    """Asks the instance metadata service whether this machine will be taken away."""

    def __init__(self) -> None:
        self._endpoint = os.environ.get(_ENDPOINT_VARIABLE, _ENDPOINT).rstrip("/")
        self._token = ""
        self._token_until = 0.0

    def notice(self) -> str | None:
        """Return what will happen and when, or None while nothing will.

        Raises:
            OSError: When the service cannot be asked.
            HTTPException: When what it answers is no HTTP.
            ValueError: When its answer is no text.
        """
        try:
            return self._notice()
        except urllib.error.HTTPError as error:
            if error.code != _UNAUTHORIZED:
                raise
        self._token_until = 0.0  # the token was withdrawn; with a new one it is answered
        return self._notice()

    def _notice(self) -> str | None:
        """Asks once."""
        if time.monotonic() >= self._token_until:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
            self._token = self._ask(_TOKEN, "PUT", lifetime)
            self._token_until = time.monotonic() + _TOKEN_SECONDS / 2
        try:
            text = self._ask(_NOTICE, "GET", {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code == _NOT_FOUND:
                return None
            raise
        try:
            told = json.loads(text)
            return f"{told['action']} at {told['time']}"
        except (ValueError, KeyError, TypeError):
            return text.strip()  # whatever it is, it is a notice

    def _ask(self, path: str, method: str, headers: dict[str, str]) -> str:
        """Return the service's answer."""
        request = urllib.request.Request(f"{self._endpoint}/{path}", method=method, headers=headers)
        with _opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            text: str = answer.read().decode()
        return text


def is_spot_watched(spot: Spot) -> bool:
    """Says whether to listen: where asked to, or by default on EC2."""
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
    """Asks for an end as soon as a notice is there, while the body runs.

    Args:
        request: Is called with the notice, once, from another thread.
        enabled: False on the ranks that do not listen.
        poll_seconds: Time between two questions.
    """
    if not enabled:
        yield
        return
    done = threading.Event()
    arguments = (request, done, poll_seconds)
    threading.Thread(target=_listen, args=arguments, name="spot notice", daemon=True).start()
    try:
        yield
    finally:
        done.set()  # not waited for: it may be in the middle of a question


def _listen(request: Callable[[str], None], done: threading.Event, poll_seconds: float) -> None:
    """Asks again and again until there is a notice, or nobody wants to know."""
    service, has_complained = MetadataService(), False
    while not done.is_set():
        try:
            notice = service.notice()
        except (OSError, ValueError, HTTPException) as error:
            if not has_complained:
                logger.info(
                    f"EC2's spot notice cannot be read: {error}; asking on, training goes on"
                )
            has_complained, notice = True, None
        if notice is not None:
            request(f"EC2 announces: {notice}")
            return
        done.wait(poll_seconds)
