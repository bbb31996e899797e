"""fsspec's file systems, one of each kind a process, and what their errors mean.

Each storage raises its own library's errors. `transfer_error` names them in one way: what happened,
what to do about it, and whether another try can help.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

from imagenet_rn50.errors import InputError

_WEB = frozenset({"http", "https"})

_DENIED = frozenset({401, 403, 407, 451})
_RETRIED = frozenset({408, 409, 412, 416, 425, 429, 500, 502, 503, 504})
_RETRIED_CODES = frozenset({"RequestTimeout", "IncompleteBody", "BadDigest"})  # S3's, of status 400
_NO_CONTAINER = frozenset(
    {"NoSuchBucket", "BucketNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError"}
)

_CREDENTIALS = {
    "s3": "check AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they allow: "
    "s3:GetObject, and s3:ListBucket, without which S3 also answers 403 for a missing file",
    "hf": "check HF_TOKEN, or log in with `hf auth login`",
    "file": "check who may read and write it",
}
_ANY_CREDENTIALS = "check the credentials that the address or the environment gives"
_ADDRESS = "check the address"
_REACH = {
    "s3": "check the network, AWS_ENDPOINT_URL and AWS_DEFAULT_REGION",
    "hf": "check the network and HF_ENDPOINT",
}
_ANY_REACH = "check the address and the network"

# By the names of classes, for the libraries are imported only where they are used: what happened,
# and whether another try cannot help.
_KINDS: tuple[tuple[frozenset[str], str, bool], ...] = (
    (frozenset({"TooManyRedirects"}), "the server redirects in circles", True),
    (
        frozenset({"SSLCertVerificationError", "ClientConnectorCertificateError"}),
        "the server's TLS certificate is not trusted",
        True,
    ),
    (frozenset({"OfflineModeIsEnabled"}), "HF_HUB_OFFLINE is set", True),
    (frozenset({"gaierror", "ClientConnectorDNSError"}), "the host name is not resolved", False),
    (frozenset({"SSLError"}), "no TLS connection", False),
    (frozenset({"ConnectionRefusedError"}), "connection refused", False),
    (
        frozenset({"TimeoutError", "TimeoutException", "ConnectTimeoutError", "ReadTimeoutError"}),
        "no answer in time",
        False,
    ),
    (
        frozenset({"ConnectionError", "ServerDisconnectedError", "ConnectionClosedError"}),
        "the connection broke",
        False,
    ),
    (
        frozenset({"ClientPayloadError", "IncompleteRead", "RemoteProtocolError"}),
        "the answer was cut short",
        False,
    ),
)
_NO_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
    | {"ProfileNotFound", "TokenRetrievalError", "SSOError"}
)
_LASTING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR, errno.EEXIST})
_MISUSED = frozenset({"ValueError", "NotImplementedError", "IsADirectoryError"})


class TransferError(Exception):
    """One try to read or write a remote file failed.

    Args:
        found: What happened; never a library's text, which may hold an address with a token.
        fix: What the user can do about it.
        is_final: Whether another try cannot help.
        is_missing: Whether the storage answered that it has no such file.
        is_denied: Whether it answered that the file may not be read.
        is_unusable: Whether the file came, and is not what it must be.
        retry_after: Seconds that the server asks to wait before the next try.
    """

    def __init__(
        self,
        found: str,
        *,
        fix: str | None = None,
        is_final: bool = False,
        is_missing: bool = False,
        is_denied: bool = False,
        is_unusable: bool = False,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(found)
        self.found = found
        self.fix = fix
        self.is_final = is_final
        self.is_missing = is_missing
        self.is_denied = is_denied
        self.is_unusable = is_unusable
        self.retry_after = retry_after


def open_to_read(address: str, scheme: str, timeout: float) -> Any:
    """Opens a remote file for streaming.

    Raises:
        InputError: When fsspec does not know the scheme, or lacks a package for it.
    """
    storage = filesystem(scheme, timeout, os.getpid())
    storage.invalidate_cache()
    if scheme in _WEB:
        # Without blocks it streams. Any size keeps fsspec from asking for it first, in a way that
        # turns every failure into FileNotFoundError.
        return storage.open(address, "rb", block_size=0, size=1)
    return storage.open(address, "rb", cache_type="none")


@cache
def filesystem(scheme: str, timeout: float, process: int) -> Any:
    """Returns this process's own file system.

    One of the parent's does not work after a fork; it must not even be freed there, for that would
    wait for a thread that the fork left behind. Being cached, it never is.
    """
    import fsspec

    try:
        storage = fsspec.filesystem(scheme, skip_instance_cache=True, **_settings(scheme, timeout))
    except (ImportError, ValueError) as error:
        raise InputError(
            f"files cannot be read from {scheme}://",
            expected="a scheme that fsspec knows, and the package that it needs",
            found=str(error),
        ) from None
    if scheme == "s3":
        storage.retries = 1  # retries are ours, so that they are counted once
    return storage


def _settings(scheme: str, timeout: float) -> dict[str, Any]:
    """Returns the settings that make a file system give up on a silent server."""
    if scheme in _WEB:
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        return {"client_kwargs": {"timeout": limits}}
    if scheme == "s3":
        limits_of_s3 = {"connect_timeout": timeout, "read_timeout": timeout}
        return {"config_kwargs": {**limits_of_s3, "retries": {"total_max_attempts": 1}}}
    return {}


def transfer_error(error: BaseException, scheme: str) -> TransferError:
    """Returns what an error of a storage means.

    Args:
        error: What fsspec raised; the libraries' own errors are its causes.
        scheme: Of the storage.
    """
    chain = list(_causes(error))
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    status, code, headers = _answer(chain)
    credentials = _CREDENTIALS.get(scheme, _ANY_CREDENTIALS)
    found = f"HTTP status {status}" if status else type(error).__name__
    named = {code} | (names & _NO_CONTAINER)
    if detail := ", ".join(sorted(name for name in named if not name.isdecimal() and name)):
        found += f" ({detail})"

    if names & _NO_CREDENTIALS:
        return TransferError("no credentials", fix=credentials, is_final=True, is_denied=True)
    if status in _DENIED or (not status and "PermissionError" in names):
        return TransferError(found, fix=credentials, is_final=True, is_denied=True)
    if named & _NO_CONTAINER:
        fix = f"{_ADDRESS}, and {credentials.removeprefix('check ')}"
        return TransferError(found, fix=fix, is_final=True)
    if status in {404, 410} or "FileNotFoundError" in names:
        answer = found if status else "no such file"
        return TransferError(answer, fix=_ADDRESS, is_final=True, is_missing=True)
    if status in _RETRIED or code in _RETRIED_CODES or status > 505:
        return TransferError(found, fix="try again later", retry_after=_retry_after(headers))
    if status:
        return TransferError(found, fix=_REACH.get(scheme, _ANY_REACH), is_final=True)
    return _without_answer(error, names, scheme)


def _without_answer(error: BaseException, names: set[str], scheme: str) -> TransferError:
    """Returns what an error means that no server sent."""
    reach = _REACH.get(scheme, _ANY_REACH)
    for which, found, is_final in _KINDS:
        if which & names:
            return TransferError(found, fix=reach, is_final=is_final)
    number = getattr(error, "errno", None)
    if scheme == "file" and number:
        return TransferError(os.strerror(number), fix=_ADDRESS, is_final=number in _LASTING)
    is_final = bool(names & _MISUSED)
    fix = _ADDRESS if is_final else reach
    return TransferError(type(error).__name__, fix=fix, is_final=is_final)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and what it was raised from, the outermost first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _answer(chain: list[BaseException]) -> tuple[int, str, Any]:
    """Returns status, S3's error code and headers of the server's answer; 0, "", {} without one."""
    for link in chain:
        response = getattr(link, "response", None)
        if isinstance(response, dict):  # botocore
            answer = response.get("ResponseMetadata", {})
            code = str(response.get("Error", {}).get("Code", ""))
            return answer.get("HTTPStatusCode", 0), code, answer.get("HTTPHeaders", {})
        # aiohttp names it on the error, httpx and Azure on its answer.
        for place, attribute in (
            (link, "status"),
            (response, "status_code"),
            (link, "status_code"),
        ):
            if isinstance(status := getattr(place, attribute, None), int) and status:
                return status, "", getattr(place, "headers", None) or {}
    return 0, "", {}


def _retry_after(headers: Any) -> float:
    """Returns how many seconds a server asks to wait, which it says as a number or as a date."""
    value = str(headers.get("retry-after") or "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError):
        date = parsedate_to_datetime(value)
        return max(
            0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        )
    return 0.0
