"""Getting files from elsewhere: through fsspec, with retries, and without telling secrets.

A location may carry a token, and so may what libraries say when something fails. So messages hold
only scheme, host and path, and of an error only its kind.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import random
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from imagenet_rn50.errors import InputError
from imagenet_rn50.files import sync_folder

_CHUNK_BYTES = 8 << 20
_WEB = frozenset({"http", "https"})

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long a download is tried.

    Args:
        tries: How often in all.
        first_pause: Seconds before the second try; twice as long before each one after it.
        longest_pause: Seconds that no pause exceeds.
        timeout: Seconds without a byte after which a try has failed.
    """

    tries: int = 6
    first_pause: float = 0.5
    longest_pause: float = 30.0
    timeout: float = 30.0

    def pause_before(self, attempt: int) -> float:
        """Returns how long to wait before try number `attempt`, from 1.

        Half of it is random, so that many readers do not come back all at once.
        """
        longest: float = min(self.first_pause * 2 ** (attempt - 1), self.longest_pause)
        return longest * random.uniform(0.5, 1.0)


PATIENCE = Patience()


@dataclass(frozen=True)
class RemoteFolder:
    """A folder that fsspec can read: https://, s3://, hf:// and others.

    Args:
        location: Its address.
        patience: How long downloads are tried.
    """

    location: str
    patience: Patience = PATIENCE

    def __repr__(self) -> str:
        return f"RemoteFolder({self.public!r})"

    @property
    def public(self) -> str:
        """The address without what may be secret: user, password, query and fragment."""
        parts = urlsplit(self.location)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def download(
        self, name: str, target: Path, *, num_bytes: int | None = None, sha256: str | None = None
    ) -> None:
        """Downloads a file, whole or not at all: it appears under `target` once it is checked.

        Args:
            name: Name of the file in the folder.
            target: Where it shall stand. Another process must not download to it meanwhile.
            num_bytes: How long it must be.
            sha256: What its hash must be.

        Raises:
            InputError: When it is not there, may not be read, or fails in every try.
        """
        temporary = target.with_name(f"{target.name}.partial")
        for attempt in range(self.patience.tries):
            if attempt:
                time.sleep(self.patience.pause_before(attempt))
            try:
                problem = self._try(name, temporary, num_bytes, sha256)
            except InputError:
                temporary.unlink(missing_ok=True)
                raise
            if problem is None:
                temporary.replace(target)
                sync_folder(target.parent)
                return
            temporary.unlink(missing_ok=True)
            log.warning("%s/%s: %s (try %d)", self.public, name, problem, attempt + 1)
        raise InputError(
            f"{self.public}/{name} cannot be downloaded",
            expected=f"{num_bytes} bytes with sha256 {sha256}" if num_bytes is not None else None,
            found=f"{problem}, in the last of {self.patience.tries} tries",
        )

    def _try(
        self, name: str, temporary: Path, num_bytes: int | None, sha256: str | None
    ) -> str | None:
        """Downloads once; returns what went wrong, or None.

        Raises:
            InputError: When another try cannot help.
        """
        try:
            size, digest = self._stream(name, temporary, num_bytes)
        except InputError:
            raise
        except Exception as error:  # every storage has its own errors, and most of them pass
            self._raise_if_final(error, name, temporary)
            return _kind(error)
        if num_bytes is not None and size != num_bytes:
            return f"{size} bytes instead of {num_bytes}"
        if sha256 is not None and digest != sha256:
            return f"sha256 {digest} instead of {sha256}"
        return None

    def _raise_if_final(self, error: Exception, name: str, temporary: Path) -> None:
        """Raises InputError where another try cannot help."""
        if isinstance(error, FileNotFoundError):
            raise InputError(f"there is no {self.public}/{name}") from None
        if isinstance(error, PermissionError) or getattr(error, "status", None) in {401, 403}:
            raise InputError(
                f"{self.public}/{name} may not be read",
                fix="check the credentials that the environment gives for this storage",
            ) from None
        if getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT}:
            raise InputError(f"no space is left for {temporary.parent}") from None

    def _stream(self, name: str, temporary: Path, num_bytes: int | None) -> tuple[int, str]:
        """Writes the file to `temporary`; returns its size and hash."""
        parts = urlsplit(self.location)
        address = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))
        digest, size = hashlib.sha256(), 0
        source = _open(address, parts.scheme, self.patience.timeout, num_bytes)
        with source, temporary.open("wb") as file:
            while chunk := source.read(_CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        return size, digest.hexdigest()


def _open(address: str, scheme: str, timeout: float, num_bytes: int | None) -> Any:
    """Opens a remote file for streaming.

    Raises:
        InputError: When fsspec does not know the scheme, or lacks a package for it.
    """
    filesystem = _filesystem(scheme, timeout, os.getpid())
    filesystem.invalidate_cache()
    if scheme in _WEB:
        # Without blocks it streams, and where the size is known it need not ask for it first.
        return filesystem.open(address, "rb", block_size=0, size=num_bytes)
    return filesystem.open(address, "rb", cache_type="none")


@cache
def _filesystem(scheme: str, timeout: float, process: int) -> Any:
    """Returns this process's own file system.

    One of the parent's does not work after a fork; it must not even be freed there, for that would
    wait for a thread that the fork left behind. Being cached, it never is.
    """
    import fsspec

    try:
        return fsspec.filesystem(scheme, skip_instance_cache=True, **_settings(scheme, timeout))
    except (ImportError, ValueError) as error:
        raise InputError(
            f"shards cannot be read from {scheme}://",
            expected="a scheme that fsspec knows, and the package that it needs",
            found=str(error),
        ) from None


def _settings(scheme: str, timeout: float) -> dict[str, Any]:
    """Returns the settings that make a file system give up on a silent server."""
    if scheme in _WEB:
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        return {"client_kwargs": {"timeout": limits}}
    if scheme == "s3":
        limits_of_s3 = {"connect_timeout": timeout, "read_timeout": timeout}
        # Retries are ours, so that they are counted once.
        return {"config_kwargs": {**limits_of_s3, "retries": {"max_attempts": 1}}}
    return {}


def _kind(error: BaseException) -> str:
    """Says what kind of error it is, without its text, which may hold an address with a token."""
    status = getattr(error, "status", None) or getattr(error, "errno", None)
    return f"{type(error).__name__} {status}" if status else type(error).__name__
