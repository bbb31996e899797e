"""Files that stand elsewhere, got and brought: through fsspec, with retries, telling no secrets.

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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from imagenet_rn50.addresses import public_address
from imagenet_rn50.errors import InputError
from imagenet_rn50.files import TEMPORARY_SUFFIX, sync_folder
from imagenet_rn50.loading.filesystems import filesystem, kind_of, open_to_read

_CHUNK_BYTES = 8 << 20
_WHOLE_OR_ABSENT = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci"})

log = logging.getLogger(__name__)


class UnusableFileError(InputError):
    """A file that is not there, or is not what it must be; trying again does not help."""


@dataclass(frozen=True)
class Patience:
    """How long a transfer is tried.

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
    """A folder that fsspec can read, and maybe write: https://, s3://, hf://, a path, and others.

    Args:
        location: Its address.
        patience: How long transfers are tried.
    """

    location: str
    patience: Patience = PATIENCE

    def __repr__(self) -> str:
        return f"RemoteFolder({self.public!r})"

    @property
    def public(self) -> str:
        """The address without what may be secret: user, password, query and fragment."""
        return public_address(self.location)

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
            UnusableFileError: When it is not there, or in every try is not what it must be.
            InputError: When it may not be read, or fails in every try.
        """
        temporary = target.with_name(f"{target.name}{TEMPORARY_SUFFIX}")
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
        kind = UnusableFileError if " instead of " in str(problem) else InputError
        raise kind(
            f"{self.public}/{name} cannot be downloaded",
            expected=f"{num_bytes} bytes with sha256 {sha256}" if num_bytes is not None else None,
            found=f"{problem}, in the last of {self.patience.tries} tries",
        )

    def upload(self, source: Path, name: str) -> None:
        """Brings a file there; it appears under its name only when it is whole.

        Args:
            source: The file.
            name: Its name in the folder; names of folders may stand before it.

        Raises:
            InputError: When it may not be written, or fails in every try.
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
                raise OSError(errno.EIO, f"{there} bytes instead of {size}")

        self._patiently(put, name)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there.

        Raises:
            InputError: When it may not be removed, or that fails in every try.
        """

        def remove(storage: Any, address: str) -> None:
            with suppress(FileNotFoundError):
                storage.rm_file(address)

        self._patiently(remove, name)

    def names(self, folder: str) -> list[str]:
        """Returns the names of all files under a folder in this one, from there on.

        Raises:
            InputError: When they may not be listed, or that fails in every try.
        """
        found: list[str] = []

        def find(storage: Any, address: str) -> None:
            storage.invalidate_cache()
            top = storage._strip_protocol(address).rstrip("/") + "/"
            found[:] = [path.removeprefix(top) for path in storage.find(address)]

        self._patiently(find, folder)
        return found

    def _patiently(self, action: Callable[[Any, str], None], name: str) -> None:
        """Tries to do something with a file that may be written.

        Raises:
            InputError: When that is not allowed, or fails in every try.
        """
        for attempt in range(self.patience.tries):
            if attempt:
                time.sleep(self.patience.pause_before(attempt))
            try:
                storage = filesystem(self._scheme, self.patience.timeout, os.getpid())
                action(storage, self._address(name))
            except InputError:
                raise
            except Exception as error:  # every storage has its own errors, and most of them pass
                problem = kind_of(error)
                if isinstance(error, PermissionError | FileNotFoundError):  # no such bucket
                    break
                log.warning("%s/%s: %s (try %d)", self.public, name, problem, attempt + 1)
            else:
                return
        raise InputError(
            f"{self.public}/{name} cannot be written",
            found=problem,
            fix="check that the bucket or folder is there, and the credentials that the "
            "environment gives for this storage",
        )

    @property
    def _scheme(self) -> str:
        """What fsspec knows the storage by; a path is a file's."""
        return urlsplit(self.location).scheme or "file"

    def _address(self, name: str) -> str:
        """Returns the address of a file in the folder."""
        parts = urlsplit(self.location)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))

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
            return kind_of(error)
        if num_bytes is not None and size != num_bytes:
            return f"{size} bytes instead of {num_bytes}"
        if sha256 is not None and digest != sha256:
            return f"sha256 {digest} instead of {sha256}"
        return None

    def _raise_if_final(self, error: Exception, name: str, temporary: Path) -> None:
        """Raises InputError where another try cannot help."""
        if isinstance(error, FileNotFoundError):
            raise UnusableFileError(f"there is no {self.public}/{name}") from None
        if isinstance(error, PermissionError) or getattr(error, "status", None) in {401, 403}:
            raise InputError(
                f"{self.public}/{name} may not be read",
                fix="check the credentials that the environment gives for this storage",
            ) from None
        if getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT}:
            raise InputError(f"no space is left for {temporary.parent}") from None

    def _stream(self, name: str, temporary: Path, num_bytes: int | None) -> tuple[int, str]:
        """Writes the file to `temporary`; returns its size and hash."""
        digest, size = hashlib.sha256(), 0
        source = open_to_read(self._address(name), self._scheme, self.patience.timeout, num_bytes)
        with source, temporary.open("wb") as file:
            while chunk := source.read(_CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        return size, digest.hexdigest()
