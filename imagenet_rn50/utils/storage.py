"""Remote storage through fsspec: addresses without secrets, file systems, reads with retries."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from imagenet_rn50.utils.errors import InputError, RankError
from imagenet_rn50.utils.files import TEMPORARY_SUFFIX, sync_folder

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.*", re.DOTALL)


def is_address(location: str | Path) -> bool:
    """Return whether a location is an address such as s3://bucket/folder, not a path."""
    return "://" in str(location)


def redact_url(location: str) -> str:
    """Return an address without its secrets: user, password, query and fragment."""
    parts = urlsplit(location)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def redact(word: str) -> str:
    """Return a word of a command line without the secrets of an address in it.

    Args:
        word: `--shards`, `s3://bucket/shards`, `--shards=https://host/shards?signature`, ...
    """
    return _ADDRESS.sub(lambda found: redact_url(found[0]), word)


_WEB = frozenset({"http", "https"})
_RATE_LIMIT = re.compile(r"r=0;\s*t=(\d+)")  # nothing remains; seconds until it does

_DENIED = frozenset({401, 403, 407, 451})
_NO_HEAD = frozenset({405, 501})
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
_CHECK_ADDRESS = "check the address"
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


def _read(address: str, scheme: str, timeout: float) -> Generator[bytes, None, None]:
    """Yield the bytes of a remote file.

    Raises:
        InputError: If fsspec does not know the scheme, or lacks a package for it.
    """
    if scheme == "hf" and not address.startswith("hf://buckets/"):
        yield from _read_from_hub(address, timeout)
        return
    storage = filesystem(scheme, timeout, os.getpid())
    storage.invalidate_cache()
    # Without blocks the web's file system streams. Any size keeps it from asking for the size
    # first, in a way that turns every failure into FileNotFoundError.
    settings = {"block_size": 0, "size": 1} if scheme in _WEB else {"cache_type": "none"}
    with storage.open(address, "rb", **settings) as source:
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk


def _read_from_hub(
    address: str, timeout: float, span: tuple[int, int] | None = None
) -> Generator[bytes, None, None]:
    """Yield the bytes of a file in a repository on the Hub, by a single request.

    The Hub's own file system asks for revision and folder before each file, and retries in its own
    way. The session keeps the token to the Hub: it is not sent to the host of a redirect.

    Args:
        address: Of the file.
        timeout: Seconds of silence after which to give up.
        span: Where to begin and end, in bytes; None for the whole file.
    """
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    uri = _hub_uri(address)
    url = hf_hub_url(uri.id, uri.path_in_repo, repo_type=uri.type, revision=uri.revision)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if span is not None:
        headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        if span is not None and response.status_code != HTTPStatus.PARTIAL_CONTENT:
            raise TransferError("the server does not serve parts of a file", is_final=True)
        yield from response.iter_bytes()


@cache
def filesystem(scheme: str, timeout: float, process: int) -> Any:
    """Return this process's own file system.

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
    if scheme == "hf":
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()  # of each upload to a bucket, in the middle of ours
    if scheme == "s3":
        storage.retries = 1  # retries are ours, so that they are counted once
    return storage


def _settings(scheme: str, timeout: float) -> dict[str, Any]:
    """Return the settings that make a file system give up on a silent server."""
    if scheme in _WEB:
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        return {"client_kwargs": {"timeout": limits}}
    if scheme == "s3":
        limits_of_s3 = {"connect_timeout": timeout, "read_timeout": timeout}
        return {"config_kwargs": {**limits_of_s3, "retries": {"total_max_attempts": 1}}}
    return {}


def transfer_error(error: BaseException, scheme: str) -> TransferError:
    """Return what an error of a storage means.

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
        fix = f"{_CHECK_ADDRESS}, and {credentials.removeprefix('check ')}"
        return TransferError(found, fix=fix, is_final=True)
    if status in {404, 410} or "FileNotFoundError" in names:
        answer = found if status else "no such file"
        return TransferError(answer, fix=_CHECK_ADDRESS, is_final=True, is_missing=True)
    if status in _RETRIED or code in _RETRIED_CODES or status > 505:
        return TransferError(found, fix="try again later", retry_after=_retry_after(headers))
    if status:
        return TransferError(found, fix=_REACH.get(scheme, _ANY_REACH), is_final=True)
    return _without_answer(error, names, scheme)


def _without_answer(error: BaseException, names: set[str], scheme: str) -> TransferError:
    """Return what an error means that no server sent."""
    reach = _REACH.get(scheme, _ANY_REACH)
    for which, found, is_final in _KINDS:
        if which & names:
            return TransferError(found, fix=reach, is_final=is_final)
    number = getattr(error, "errno", None)
    if scheme == "file" and number:
        return TransferError(os.strerror(number), fix=_CHECK_ADDRESS, is_final=number in _LASTING)
    is_final = bool(names & _MISUSED)
    fix = _CHECK_ADDRESS if is_final else reach
    return TransferError(type(error).__name__, fix=fix, is_final=is_final)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, the outermost first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _answer(chain: list[BaseException]) -> tuple[int, str, Any]:
    """Return status, S3's error code and headers of the server's answer; 0, "", {} without one."""
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
    """Return how many seconds a server asks to wait: a number, a date, or the Hub's `ratelimit`."""
    value = str(headers.get("retry-after") or "")
    if not value and (reset := _RATE_LIMIT.search(str(headers.get("ratelimit") or ""))):
        return float(reset[1])
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError):
        date = parsedate_to_datetime(value)
        return max(
            0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        )
    return 0.0


_CHUNK_BYTES = 8 << 20
_LEAST_BYTES_PER_S = 1000  # what comes slower than that has stalled
_WHOLE_OR_ABSENT = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "hf"})
_WITHOUT_HOST = frozenset({"file", "local", "memory"})

log = logging.getLogger(__name__)


class UnusableFileError(InputError):
    """A file that is not there, or is not what it must be; trying again does not help."""


class MissingFileError(UnusableFileError):
    """A file that the storage says it does not have."""


class DeniedError(InputError):
    """A file or folder that the storage does not let this user read."""


@dataclass(frozen=True)
class FileInfo:
    """What is known of a file without reading it.

    Args:
        num_bytes: Its size; None where the server does not tell.
        sha256: Its hash, which the Hub knows of large files; None elsewhere.
        version: What changes with its content, such as an ETag; None where there is none.
    """

    num_bytes: int | None = None
    sha256: str | None = None
    version: str | None = None

    @classmethod
    def of(cls, entry: dict[str, Any]) -> FileInfo:
        """Return what an entry of a file system says."""
        entry = {name.lower(): value for name, value in entry.items()}
        size, lfs = entry.get("size"), entry.get("lfs")
        names = ("etag", "blob_id", "xet_hash", "last-modified", "lastmodified", "mtime")
        version = next((str(entry[name]) for name in names if entry.get(name)), None)
        return cls(
            num_bytes=None if size is None else int(size),
            sha256=None if lfs is None else str(lfs["sha256"]),
            version=version,
        )


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long to retry a transfer.

    Args:
        tries: Number of tries in all.
        initial_backoff: Seconds before the second try; they double before each further one.
        max_backoff: Longest backoff, seconds.
        timeout: Seconds without a byte after which a try has failed.
        max_total_backoff: Longest sum of all waits of one transfer, seconds. If a server asks for
            more, the transfer fails.
    """

    tries: int = 6
    initial_backoff: float = 0.5
    max_backoff: float = 30.0
    timeout: float = 30.0
    max_total_backoff: float = 300.0

    def backoff(self, attempt: int) -> float:
        """Return the seconds to wait after try number `attempt`, from 1.

        Half of it is random, so that many readers do not retry all at once.
        """
        longest: float = min(self.initial_backoff * 2 ** (attempt - 1), self.max_backoff)
        return longest * random.uniform(0.5, 1.0)


DEFAULT_RETRY_POLICY = RetryPolicy()


@dataclass(frozen=True)
class RemoteFolder:
    """A folder that fsspec can read, and maybe write: https://, s3://, hf://, a path, and others.

    Args:
        location: Its address.
        retry_policy: How often transfers are retried.
    """

    location: str
    retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY

    def __post_init__(self) -> None:
        """Check the address.

        Raises:
            InputError: If it has no host or bucket.
        """
        scheme = self.location.partition("://")[0]
        try:
            is_address = bool(urlsplit(self.location).netloc) or "://" not in self.location
        except ValueError:
            is_address = False
        if not is_address and scheme not in _WITHOUT_HOST:
            raise InputError(
                f"the address {scheme}://... has no host or bucket",
                expected=f"{scheme}://HOST_OR_BUCKET/FOLDER",
            )

    def __repr__(self) -> str:
        return f"RemoteFolder({self.public!r})"

    @property
    def public(self) -> str:
        """The address without its secrets: user, password, query and fragment."""
        return redact_url(self.location)

    def download(
        self,
        name: str,
        target: Path,
        *,
        num_bytes: int | None = None,
        sha256: str | None = None,
        is_json: bool = False,
        tick: Callable[[int], None] | None = None,
        is_kept: bool = True,
    ) -> str:
        """Download a file, whole or not at all: `target` appears once it is verified.

        Args:
            name: Name of the file in the folder.
            target: The path to write. No other process may download to it meanwhile.
            num_bytes: Its expected size.
            sha256: Its expected hash.
            is_json: Whether it must be JSON, which shows that a file of unknown length is whole.
            tick: Called with the number of bytes of each part that arrives; may raise to stop.
            is_kept: Whether the file must survive a power cut; not if it is read once and deleted.

        Returns:
            Its SHA-256.

        Raises:
            MissingFileError: If the storage has no such file.
            UnusableFileError: If size, hash or JSON are wrong in the last try.
            InputError: If access is denied, every try fails, or the disk is full.
            FileNotFoundError: If the folder of `target` was removed meanwhile.
        """
        temporary = target.with_name(f"{target.name}.{os.getpid()}{TEMPORARY_SUFFIX}")

        digest = ""

        def get() -> None:
            nonlocal digest
            size, digest = self._stream(name, temporary, tick, is_kept=is_kept)
            problem = None
            if num_bytes is not None and size != num_bytes:
                problem = f"{size} bytes instead of {num_bytes}"
            elif sha256 is not None and digest != sha256:
                problem = f"sha256 {digest} instead of {sha256}"
            elif is_json and not _is_json(temporary):
                problem = f"{size} bytes that are no JSON"
            if problem:
                fix = "check the file at the address; upload it and the file with its hash again"
                raise TransferError(problem, fix=fix, is_unusable=True)

        try:
            self._retry(get, name, "downloaded")
            temporary.replace(target)
            if is_kept:
                sync_folder(target.parent)
            return digest
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _local_error(error, temporary.parent) from None
        finally:
            temporary.unlink(missing_ok=True)

    def upload(self, source: Path, name: str) -> None:
        """Upload a file; its name appears only when it is complete.

        Args:
            source: The file.
            name: Its path in the folder.

        Raises:
            InputError: If access is denied, or every try fails.
        """
        size = source.stat().st_size

        def put(storage: Any, address: str) -> None:
            if self._scheme in _WHOLE_OR_ABSENT:
                storage.put_file(str(source), address)
            else:
                storage.makedirs(address.rpartition("/")[0], exist_ok=True)
                storage.put_file(str(source), f"{address}{TEMPORARY_SUFFIX}")
                storage.mv(f"{address}{TEMPORARY_SUFFIX}", address)
            storage.invalidate_cache()
            if (there := storage.info(address)["size"]) != size:
                raise TransferError(f"{there} bytes instead of {size}")

        self._run(put, name, "uploaded")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            InputError: If access is denied, or every try fails.
        """

        def remove(storage: Any, address: str) -> None:
            with suppress(FileNotFoundError):
                storage.rm_file(address)

        self._run(remove, name, "removed")

    def files(self, max_depth: int | None = None) -> dict[str, FileInfo]:
        """Return all files in the folder by their path in it.

        A web server lists names only, as the links of an HTML page; `info` asks for more.

        Args:
            max_depth: 1 for the folder alone, 2 for its subfolders too, and so on; None for all.

        Raises:
            InputError: If access is denied, or every try fails.
        """
        from fsspec.core import strip_protocol

        found: dict[str, FileInfo] = {}

        def find(storage: Any, address: str) -> None:
            storage.invalidate_cache()
            found.clear()
            if self._scheme in _WEB:
                names = _linked(storage, address, max_depth)
                found.update({name.removeprefix(address): FileInfo() for name in names})
                return
            # With a depth, only the Hub's file system reports folders that it cannot list.
            depth = max_depth if self._scheme == "hf" else None
            top = strip_protocol(address).rstrip("/") + "/"
            for path, entry in storage.find(address, maxdepth=depth, detail=True).items():
                name = path.removeprefix(top)
                if max_depth is None or name.count("/") < max_depth:
                    found[name] = FileInfo.of(entry)

        self._run(find, "", "listed")
        return found

    def info(self, name: str) -> FileInfo:
        """Return what the storage says about a file.

        Raises:
            MissingFileError: If the storage has no such file.
            InputError: If access is denied, or every try fails.
        """
        found = FileInfo()

        def ask(storage: Any, address: str) -> None:
            nonlocal found
            if self._scheme in _WEB:
                found = _head(storage, address)
                return
            if self._scheme != "hf":  # whose folders are listed once, at a commit
                storage.invalidate_cache()
            found = FileInfo.of(storage.info(address))

        self._run(ask, name, "looked up")
        return found

    def at_commit(self) -> RemoteFolder:
        """Return the folder at the commit that its revision names now.

        Only repositories on the Hub have commits; other folders are returned as they are.

        Raises:
            InputError: If there is no such repository or revision, or access is denied.
        """
        if self._scheme != "hf" or self.location.startswith("hf://buckets/"):
            return self
        location = self.location

        def resolve(storage: Any, address: str) -> None:
            nonlocal location
            from huggingface_hub import HfApi

            uri = _hub_uri(self.location)
            commit = HfApi().repo_info(
                uri.id,
                repo_type=uri.type,
                revision=uri.revision,
                timeout=self.retry_policy.timeout,
            )
            kind = "" if uri.type == "model" else f"{uri.type}s/"
            path = f"/{uri.path_in_repo}" if uri.path_in_repo else ""
            location = f"hf://{kind}{uri.id}@{commit.sha}{path}"

        self._run(resolve, "", "looked up")
        return replace(self, location=location)

    def read(self, name: str, begin: int, end: int) -> bytes:
        """Return the bytes of a file from `begin` up to, but not including, `end`.

        Raises:
            MissingFileError: If the storage has no such file.
            InputError: If access is denied, or every try fails.
        """
        content = b""

        def get(storage: Any, address: str) -> None:
            nonlocal content
            if self._scheme == "hf" and not address.startswith("hf://buckets/"):
                timeout = self.retry_policy.timeout
                content = b"".join(_read_from_hub(address, timeout, (begin, end)))
            else:
                content = storage.cat_file(address, start=begin, end=end)
            if len(content) != end - begin:
                raise TransferError(f"{len(content)} bytes instead of {end - begin}")

        self._run(get, name, "downloaded")
        return content

    def names(self, folder: str) -> list[str]:
        """Return the paths of all files under a subfolder, relative to it.

        Raises:
            InputError: If access is denied, or every try fails.
        """
        return [*replace(self, location=self._address(folder)).files()]

    def _run(self, action: Callable[[Any, str], None], name: str, done: str) -> None:
        """Run `action` on a file or folder, with retries.

        Raises:
            InputError: If access is denied, or every try fails.
        """

        def act() -> None:
            try:
                storage = filesystem(self._scheme, self.retry_policy.timeout, os.getpid())
                action(storage, self._address(name))
            except (InputError, TransferError):
                raise
            except Exception as error:  # every storage has its own errors
                raise transfer_error(error, self._scheme) from None

        self._retry(act, name, done)

    def _retry(self, action: Callable[[], None], name: str, done: str) -> None:
        """Run `action` until it succeeds, or until retrying cannot help.

        Raises:
            InputError: If it never succeeds.
        """
        where = f"{self.public}/{name}".removesuffix("/")
        began, paused = time.monotonic(), 0.0
        for attempt in range(1, self.retry_policy.tries + 1):
            try:
                return action()
            except TransferError as error:
                failure = error
            if failure.is_final:
                raise _final_error(failure, where, done, self._access_fix(failure))
            pause = max(failure.retry_after, self.retry_policy.backoff(attempt))
            if paused + pause > self.retry_policy.max_total_backoff:
                break
            log.warning("%s: %s (try %d)", where, failure.found, attempt)
            if attempt < self.retry_policy.tries:
                time.sleep(pause)
                paused += pause
        seconds = time.monotonic() - began
        found = f"{failure.found}, in the last of {attempt} tries within {seconds:.0f} s"
        if failure.retry_after > self.retry_policy.max_total_backoff - paused:
            found += f"; the server asks to wait for {failure.retry_after:.0f} s"
        kind = UnusableFileError if failure.is_unusable else RankError
        raise kind(f"{where} cannot be {done}", found=found, fix=failure.fix)

    def _access_fix(self, failure: TransferError) -> str | None:
        """Return what to do about a failure; if the Hub denies access, name the page."""
        if not (failure.is_denied and self._scheme == "hf"):
            return failure.fix
        from huggingface_hub import constants

        uri = _hub_uri(self.location)
        kind = "" if uri.type == "model" else f"{uri.type}s/"
        return (
            f"accept the terms at {constants.ENDPOINT}/{kind}{uri.id}, and log in with "
            "`hf auth login` or set HF_TOKEN"
        )

    @property
    def _scheme(self) -> str:
        """The scheme that fsspec knows the storage by; `file` for a path."""
        return urlsplit(self.location).scheme or "file"

    def _address(self, name: str) -> str:
        """Return the address of a file in the folder."""
        parts = urlsplit(self.location)
        if self._scheme in _WEB:
            name = quote(name)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))

    def _stream(
        self,
        name: str,
        temporary: Path,
        tick: Callable[[int], None] | None,
        *,
        is_kept: bool,
    ) -> tuple[int, str]:
        """Write the file to `temporary`; returns its size and hash."""
        digest, size = hashlib.sha256(), 0
        with temporary.open("wb") as file, closing(self._chunks(name)) as chunks:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                if tick is not None:
                    tick(len(chunk))
            file.flush()
            if is_kept:
                os.fsync(file.fileno())
        return size, digest.hexdigest()

    def _chunks(self, name: str) -> Generator[bytes, None, None]:
        """Yield the bytes of a file.

        Raises:
            TransferError: If a try fails.
        """
        address, timeout = self._address(name), self.retry_policy.timeout
        began, size = time.monotonic(), 0
        try:
            with closing(_read(address, self._scheme, timeout)) as chunks:
                for chunk in chunks:
                    yield chunk
                    size += len(chunk)
                    seconds = time.monotonic() - began
                    if seconds > timeout and size < seconds * _LEAST_BYTES_PER_S:
                        raise TransferError(f"{size} bytes in {seconds:.0f} s")
        except (InputError, TransferError):
            raise
        except Exception as error:  # every storage has its own errors
            raise transfer_error(error, self._scheme) from None


def _final_error(failure: TransferError, where: str, done: str, fix: str | None) -> InputError:
    """Return the message for a failure that a retry cannot fix."""
    if failure.is_missing and done in {"downloaded", "looked up", "listed"}:
        return MissingFileError(f"there is no {where}", found=failure.found, fix=fix)
    problem = f"cannot be {done}"
    if failure.is_denied and done in {"downloaded", "looked up"}:
        problem = "may not be read"
    kind = DeniedError if failure.is_denied else InputError
    return kind(f"{where} {problem}", found=failure.found, fix=fix)


def _linked(storage: Any, address: str, max_depth: int | None) -> Iterator[str]:
    """Yield the addresses of the files that a web server's pages of a folder link to, unquoted."""
    for entry in storage.ls(address, detail=True):
        link = entry["name"]
        if {"?", "#"} & set(link):  # which sorts the page, say
            continue
        if not link.endswith("/"):
            yield unquote(link)
        elif len(link) > len(address) and max_depth != 1:
            yield from _linked(storage, link, None if max_depth is None else max_depth - 1)


def _hub_uri(address: str) -> Any:
    """Return the parts of an address on the Hub.

    Raises:
        InputError: When it is none.
    """
    from huggingface_hub import parse_hf_uri

    try:
        return parse_hf_uri(address)
    except ValueError:
        raise InputError(
            f"{address} is not an address on the Hub",
            expected="hf://datasets/OWNER/NAME, maybe with @REVISION and /FOLDER",
        ) from None


def _head(storage: Any, address: str) -> FileInfo:
    """Ask a web server for a file's size and version; unknown where it does not answer HEAD."""
    from fsspec.asyn import sync

    async def ask() -> FileInfo:
        session = await storage.set_session()
        headers = {"Accept-Encoding": "identity"}
        url = storage.encode_url(address)
        async with session.head(url, allow_redirects=True, headers=headers) as response:
            if response.status in _NO_HEAD:
                return FileInfo()
            response.raise_for_status()
            return FileInfo.of({**response.headers, "size": response.content_length})

    found: FileInfo = sync(storage.loop, ask)
    return found


def _local_error(error: OSError, folder: Path) -> InputError:
    """Return the message for a download that cannot be written on this machine."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return InputError(
            f"no space is left for {folder}",
            fix="free some, give a folder on another volume, or let a cache of shards take less",
        )
    return InputError(f"{folder} cannot be written", found=error.strerror)


def _is_json(path: Path) -> bool:
    """Return whether a file is complete, valid JSON."""
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True
