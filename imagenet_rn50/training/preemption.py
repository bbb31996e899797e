"""EC2's notice that a spot machine will be taken away, some two minutes ahead.

The instance metadata service (IMDSv2) is asked every few seconds, by one rank of each machine in a
thread. What goes wrong with that is told once, and never ends a training.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from imagenet_rn50.console import say
from imagenet_rn50.training.config import Spot

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
                say(f"EC2's spot notice cannot be read: {error}; asking on, training goes on")
            has_complained, notice = True, None
        if notice is not None:
            request(f"EC2 announces: {notice}")
            return
        done.wait(poll_seconds)
