"""Write files that are complete or absent: temporary name, fsync, rename (contract 5)."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.logging import logger
from imagenet_rn50.utils.parsing import parse_json, parse_yaml

TEMPORARY_SUFFIX = ".partial"
_LOCK_POLL_S = 0.5


def sync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that renames in it survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under `path` only when it is complete and on disk.

    If the body raises, the new file is removed and an older `path` stays as it was.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in {None, str(temporary)}:
            error.filename, error.filename2 = str(path), None  # the name that the user knows
        raise
    sync_folder(path.parent)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")


def replace_folder(temporary: Path, final: Path) -> None:
    """Rename a folder to its final name, once all of it is on disk.

    An older folder of that name is moved aside first and removed last, so that one of the two is
    complete on disk at any moment.
    """
    for path in [*temporary.rglob("*"), temporary]:
        sync_folder(path)  # works for files, too
    aside = final.with_name(f"{final.name}.replaced{TEMPORARY_SUFFIX}")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    try:
        temporary.rename(final)
    except OSError:
        if aside.exists():
            aside.rename(final)
        raise
    sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with atomic_file(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, without the byte order mark of Windows editors.

    Raises:
        InputError: If the file is missing, cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read", expected="text in UTF-8", found=str(error)
        ) from None


def read_json(path: Path) -> Any:
    """Read a JSON file; see `parse_json`.

    Raises:
        InputError: If the file is missing, cannot be read or is not valid JSON.
    """
    return parse_json(read_text(path), source=str(path))


def read_yaml(path: Path) -> Any:
    """Read a YAML file; see `parse_yaml`.

    Raises:
        InputError: If the file is missing, cannot be read or is not valid YAML.
    """
    return parse_yaml(read_text(path), source=str(path))


def make_folder(folder: Path, fix: str) -> None:
    """Create a folder and its parents unless it exists, and check that it is writable.

    Args:
        folder: The folder.
        fix: The fix in the message.

    Raises:
        InputError: If it cannot be created or is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written", found=error.strerror, fix=fix) from None
    require_writable(folder, fix)


def require_writable(folder: Path, fix: str) -> None:
    """Check that files can be written into a folder, before work whose results go there.

    Args:
        folder: The folder; it may not exist yet.
        fix: The fix in the message.

    Raises:
        InputError: If it, or its nearest existing parent, is not writable.
    """
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written", found=error.strerror, fix=fix) from None


def require_writable_file(path: Path) -> None:
    """Check that a file can be written, before work whose result goes there.

    Raises:
        InputError: If its folder is missing or read-only, or it is a folder or a device.
    """
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} for {path.name}")
    if path.exists() and not path.is_file():
        found = "a folder" if path.is_dir() else "no regular file"
        raise InputError(f"{path} cannot be written", expected="a file name", found=found)
    temporary = _temporary(path)
    try:
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise InputError(
            f"{path} cannot be written",
            expected="a file name in a writable folder",
            found=error.strerror,
        ) from None


def follow_umask(path: Path) -> None:
    """Give a file the mode of a new file; safetensors creates files that only the owner reads."""
    other = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    other.touch()
    try:
        shutil.copymode(other, path)
    finally:
        other.unlink()


@contextmanager
def lock_file(
    path: Path, *, timeout: float | None = None, waiting: str | None = None
) -> Iterator[bool]:
    """Hold an exclusive `flock` on a file or a folder while the body runs.

    The lock excludes other processes and other threads of this one, and is released when the
    process ends (unless forked children inherited it). If the file system has no locks, that is
    logged and the body runs unlocked.

    Args:
        path: A folder, or a file, which is created.
        timeout: How long to wait for the lock, in seconds; None waits forever, 0 not at all.
        waiting: Logged once if the lock is held by another process.

    Yields:
        Whether the lock was acquired.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, 0o666)
    try:
        yield _acquire(descriptor, path, timeout, waiting)
    finally:
        os.close(descriptor)


@contextmanager
def lock_or_raise(path: Path, refusal: InputError) -> Iterator[None]:
    """Hold the lock of `lock_file` while the body runs.

    Args:
        path: The file.
        refusal: Raised if another process holds the lock.
    """
    with lock_file(path, timeout=0) as is_locked:
        if not is_locked:
            raise refusal
        yield


def _acquire(descriptor: int, path: Path, timeout: float | None, waiting: str | None) -> bool:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        blocks = 0 if timeout is None and not waiting else fcntl.LOCK_NB
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | blocks)
        except BlockingIOError:
            if waiting:
                logger.info(waiting)
                waiting = None
            if deadline is not None:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_LOCK_POLL_S)
        except OSError as error:
            logger.info(f"{path} cannot be locked ({error}): start no other process there")
            return True
        else:
            return True


def sha256_of_file(path: Path) -> str:
    """Return the file's SHA-256 as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_free_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Check that a volume has enough free space, before a large write.

    Args:
        folder: The folder to write to; it may not exist yet.
        needed_bytes: Bytes to write.
        purpose: What needs the space, for the message.

    Raises:
        InputError: If fewer bytes are free.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise InputError(
            f"not enough disk space for {purpose} in {folder}",
            expected=f"at least {needed_bytes / 1e9:.3f} GB free",
            found=f"{free_bytes / 1e9:.3f} GB free on the volume of {existing}",
            fix="free some space, or use a folder on another volume",
        )
