"""fsspec's file systems, one of each kind a process, that give up on a silent server."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from imagenet_rn50.errors import InputError

_WEB = frozenset({"http", "https"})


def open_to_read(address: str, scheme: str, timeout: float, num_bytes: int | None) -> Any:
    """Opens a remote file for streaming.

    Raises:
        InputError: When fsspec does not know the scheme, or lacks a package for it.
    """
    storage = filesystem(scheme, timeout, os.getpid())
    storage.invalidate_cache()
    if scheme in _WEB:
        # Without blocks it streams, and where the size is known it need not ask for it first.
        return storage.open(address, "rb", block_size=0, size=num_bytes)
    return storage.open(address, "rb", cache_type="none")


@cache
def filesystem(scheme: str, timeout: float, process: int) -> Any:
    """Returns this process's own file system.

    One of the parent's does not work after a fork; it must not even be freed there, for that would
    wait for a thread that the fork left behind. Being cached, it never is.
    """
    import fsspec

    try:
        return fsspec.filesystem(scheme, skip_instance_cache=True, **_settings(scheme, timeout))
    except (ImportError, ValueError) as error:
        raise InputError(
            f"files cannot be read from {scheme}://",
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


def kind_of(error: BaseException) -> str:
    """Says what kind of error it is, without its text, which may hold an address with a token."""
    status = getattr(error, "status", None) or getattr(error, "errno", None)
    return f"{type(error).__name__} {status}" if status else type(error).__name__
