"""Where shards are: beside their manifest, in another folder, or remote and cached.

`open_shards` reads the manifest's `location` and returns a `ShardStore`, which hands out shards as
local files, whatever is behind it.

A cache is a bounded folder that all ranks and workers of a machine share:

    CACHE/
      <hash of the address>/   manifest.json, manifest-*.npz, classes.json of a remote manifest
      shards/                  <sha256>.tar      whole and checked when it was downloaded
                               <sha256>.lock     held by the process that downloads or discards it
                               <sha256>.tar.PID.partial, .tar.reserved    while it is downloaded
                               <hash of the address>.*    the same, until the sha256 is known
      evict.lock               held while space is made

A shard's name in the cache is its hash, so data sets never mix, and a shard that was packed again
is downloaded again. A shard that is damaged when it is read is discarded and downloaded again.
Locks are `flock`: the kernel releases them when a process dies, however it dies.
"""

from __future__ import annotations

import hashlib
import math
import os
import posixpath
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from imagenet_rn50.classes import FILE_NAME as CLASSES_FILE
from imagenet_rn50.shards.manifest import FILE_NAME as MANIFEST_FILE
from imagenet_rn50.shards.manifest import Manifest, Shard, Split
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import lock_file, make_folder, read_json, sha256_of_file
from imagenet_rn50.utils.formatting import quoted
from imagenet_rn50.utils.storage import (
    DEFAULT_RETRY_POLICY,
    FileInfo,
    RemoteFolder,
    RetryPolicy,
    is_address,
)

DEFAULT_LIMIT_BYTES = 100 * 10**9
_PAUSE = 0.05
_OPEN_TRIES = 5


class ShardStore(Protocol):
    """Give access to shards as local files."""

    @property
    def folder(self) -> Path:
        """Local folder of the manifest."""

    def fetch(self, shard: Shard) -> Path:
        """Return the shard's file, complete; downloading it may take a while.

        Raises:
            InputError: If it is missing or cannot be downloaded.
        """

    def discard(self, shard: Shard, descriptor: int) -> bool:
        """Discard the damaged copy of a shard that `descriptor` is open on, if it is one.

        Returns:
            Whether `fetch` now returns another copy.
        """

    @property
    def repair(self) -> str:
        """How the user can fix a damaged sample of which there is no better copy."""


@dataclass(frozen=True)
class LocalShards:
    """Shards on this machine.

    Args:
        folder: Folder of the manifest.
        location: Folder of the shards; None for the manifest's own.
    """

    folder: Path
    location: Path | None = None

    def fetch(self, shard: Shard) -> Path:
        """Return the path of the shard.

        Raises:
            InputError: If it is missing.
        """
        path = (self.location or self.folder) / shard.name
        if not path.is_file():
            raise InputError(
                f"there is no shard {path}",
                expected="every shard that the manifest lists"
                if self.location is None
                else f"every shard that the manifest lists, at the location that {self.folder}/"
                f"{MANIFEST_FILE} gives",
                fix="copy it back, or pack again: finished shards are kept",
            )
        return path

    def discard(self, shard: Shard, descriptor: int) -> bool:
        """Keep the shard: it is the original."""
        return False

    @property
    def repair(self) -> str:
        """How the user can fix a damaged sample."""
        return (
            f"python shard_imagenet.py verify --shards {quoted(self.folder)} names all that is "
            "damaged: copy those shards back"
        )


@dataclass(frozen=True)
class CachedShards:
    """Shards of a remote folder, downloaded when needed; the least recently used are evicted first.

    Args:
        remote: The folder.
        cache: Folder on this machine, best on a local NVMe disk.
        limit_bytes: How much space the shards in it may take, those of other data sets included.
        folder: Local folder of the manifest.
    """

    remote: RemoteFolder
    cache: Path
    limit_bytes: int
    folder: Path

    @property
    def _shards(self) -> Path:
        return self.cache / "shards"

    def fetch(self, shard: Shard) -> Path:
        """Return the shard's file in the cache, downloading it if necessary.

        It may be evicted before it is opened; then fetch it again. Once open, it stays readable.

        Raises:
            InputError: If it cannot be downloaded, or exceeds the limit of the cache.
            FileNotFoundError: If the cache was removed meanwhile; then fetch it again.
        """
        path = self._path(shard)
        try:
            if _is_there(path):
                return path
            self._shards.mkdir(parents=True, exist_ok=True)
            with lock_file(path.with_suffix(".lock")):
                if not _is_there(path):  # another process may have fetched it meanwhile
                    self._download(shard, path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise InputError(
                f"the cache {self.cache} cannot be used",
                found=error.strerror,
                fix="name another folder with --cache",
            ) from None
        return path

    def holds(self, shard: Shard) -> bool:
        """Return whether the cache has the shard."""
        return self._path(shard).is_file()

    def add(
        self,
        name: str,
        info: FileInfo,
        *,
        began: float,
        tick: Callable[[int], None] | None = None,
    ) -> Path | None:
        """Download a shard of which no manifest knows the hash yet, and keep it.

        Args:
            name: Its name in the remote folder.
            info: What is known of it.
            began: Shards used since then are not evicted for it, in seconds since the epoch.
            tick: Called with the number of bytes of each part that arrives.

        Returns:
            Its file in the cache, whose name is its hash; None if there is no space for it.

        Raises:
            InputError: If it cannot be downloaded.
        """
        self._shards.mkdir(parents=True, exist_ok=True)
        key = info.sha256 or hashlib.sha256(f"{self.remote.public}/{name}".encode()).hexdigest()
        path = self._shards / f"{key}.tar"
        with lock_file(path.with_suffix(".lock")):
            if info.sha256 is not None and _is_there(path):
                if sha256_of_file(path) == info.sha256:
                    return path
                path.unlink()
            try:
                with _reservation(path) as reserved:
                    if not self._reserve(info.num_bytes or 0, reserved, began):
                        return None
                    target = path if info.sha256 else path.with_name(f"{path.name}.new.partial")
                    sha256 = self.remote.download(
                        name, target, num_bytes=info.num_bytes, sha256=info.sha256, tick=tick
                    )
                    kept = self._shards / f"{sha256}.tar"
                    target.replace(kept)
                    return kept
            finally:
                if info.sha256 is None:
                    path.with_suffix(".lock").unlink(missing_ok=True)

    def info(self, shard: Shard) -> FileInfo:
        """Return what the remote storage says about a shard.

        Raises:
            MissingFileError: If it has no such file.
            InputError: If it cannot be asked.
        """
        return self.remote.info(shard.name)

    def discard(self, shard: Shard, descriptor: int) -> bool:
        """Remove a damaged copy, unless another process has replaced it already."""
        path = self._path(shard)
        with suppress(FileNotFoundError), lock_file(path.with_suffix(".lock")):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                path.unlink()
        return True

    @property
    def repair(self) -> str:
        """What the user can do about a sample that is damaged in a fresh copy, too."""
        return (
            f"the shard was downloaded again, and that did not help: check the disk of the cache "
            f"{self.cache} (--cache names another), and the shards at {self.remote.public} by "
            "python shard_imagenet.py verify"
        )

    def _path(self, shard: Shard) -> Path:
        """Return the path of a shard in the cache."""
        return self._shards / f"{shard.sha256}.tar"

    def _download(self, shard: Shard, path: Path) -> None:
        """Make space and download; the caller holds the shard's lock."""
        with _reservation(path) as reserved:
            while not self._make_space(shard, reserved):
                time.sleep(_PAUSE)  # until a download that takes the space is whole
            self.remote.download(shard.name, path, num_bytes=shard.num_bytes, sha256=shard.sha256)

    def _make_space(self, shard: Shard, reserved: Path) -> bool:
        """Evict shards until this one fits and reserve its space; return whether it fits.

        Raises:
            InputError: If it exceeds the limit of the cache.
        """
        if shard.num_bytes > self.limit_bytes:
            raise InputError(
                f"{shard.name} does not fit into the cache {self.cache}",
                expected=f"a limit of at least {shard.num_bytes} bytes",
                found=f"{self.limit_bytes} bytes",
            )
        return self._reserve(shard.num_bytes, reserved, math.inf)

    def _reserve(self, num_bytes: int, reserved: Path, began: float) -> bool:
        """Evict shards last used before `began` until a shard fits; return whether it fits."""
        with lock_file(self.cache / "evict.lock"):
            used = self._remove_leftovers() + num_bytes
            for path in sorted(self._shards.glob("*.tar"), key=_last_use):
                if used <= self.limit_bytes or _last_use(path) >= began:
                    break
                used -= _size(path)
                path.unlink(missing_ok=True)
            if used > self.limit_bytes:
                return False
            with reserved.open("wb") as file:  # counts from the start with all its bytes
                os.truncate(file.fileno(), num_bytes)
            return True

    def _remove_leftovers(self) -> int:
        """Remove what killed processes left; return how many bytes the rest takes."""
        used = sum(_size(path) for path in self._shards.glob("*.tar"))
        for reserved in self._shards.glob("*.reserved"):
            whole = reserved.with_suffix("")
            with lock_file(whole.with_suffix(".lock"), timeout=0) as is_free:
                if is_free:
                    reserved.unlink(missing_ok=True)
                    for partial in self._shards.glob(f"{whole.name}.*partial"):
                        partial.unlink(missing_ok=True)
                else:
                    used += _size(reserved)
        return used


def open_shards(
    shards: str | Path,
    *,
    cache: Path | None = None,
    limit_bytes: int = DEFAULT_LIMIT_BYTES,
    retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY,
) -> ShardStore:
    """Open the shards of a manifest, wherever both are; its manifest is in the store's `folder`.

    Args:
        shards: Folder of the manifest: a path, or an address such as s3://bucket/imagenet.
        cache: Where remote shards are kept on this machine.
        limit_bytes: How much space they may take there.
        retry_policy: How often downloads are retried.

    Raises:
        InputError: If a remote manifest cannot be downloaded, or no cache is given for remote
            shards.
    """
    folder, base = Path(shards), str(shards)
    if is_address(shards):
        remote = RemoteFolder(base, retry_policy)
        folder = _download_manifest(remote, _require_cache(remote, cache))
    location = resolve_location(base, Manifest.location_of(folder))
    if not is_address(location):
        return LocalShards(folder, None if Path(location) == folder else Path(location))
    remote = RemoteFolder(location, retry_policy)
    return CachedShards(remote, _require_cache(remote, cache), limit_bytes, folder)


def resolve_location(base: str, location: str | None) -> str:
    """Return where shards are, as a path or an address.

    Args:
        base: Folder of the manifest: a path or an address.
        location: The manifest's `location`: None, an address, or a path, which is relative to
            `base` unless it is absolute.
    """
    if location is None:
        return base
    if is_address(location):
        return location
    if is_address(base):
        scheme, _, path = base.partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(path, location))}"
    return os.path.normpath(os.path.join(base, location))


def location_from(out: Path, shards: str | Path) -> str:
    """Return the `location` to write into a manifest in `out`.

    A path that was given relative stays relative, to the manifest.

    Args:
        out: Folder of the manifest.
        shards: Where the shards are: a path, relative to the working directory, or an address.
    """
    if is_address(shards) or Path(shards).is_absolute():
        return str(shards)
    # Both resolved: a link in the middle of a path would change what `..` means.
    return os.path.relpath(Path(shards).resolve(), out.resolve())


def _require_cache(remote: RemoteFolder, cache: Path | None) -> Path:
    if cache is None:
        raise InputError(
            f"{remote.public} is remote",
            expected="a local folder for the cache of shards",
            fix="name one with --cache",
        )
    return cache


def _download_manifest(remote: RemoteFolder, cache: Path) -> Path:
    """Download a manifest and the classes into the cache; return their folder.

    Raises:
        InputError: If they cannot be downloaded.
    """
    folder = cache / hashlib.sha256(remote.public.encode()).hexdigest()[:16]
    make_folder(folder, fix="name another folder with --cache")
    with lock_file(folder / "manifest.lock"):
        remote.download(MANIFEST_FILE, folder / MANIFEST_FILE, is_json=True)
        for name, sha256 in _columns(remote, folder):
            remote.download(name, folder / name, sha256=sha256)
        remote.download(CLASSES_FILE, folder / CLASSES_FILE, is_json=True)
    return folder


def _columns(remote: RemoteFolder, folder: Path) -> list[tuple[str, str]]:
    """Return name and hash of each file that the manifest consists of besides the JSON.

    Raises:
        InputError: If the JSON is not a manifest.
    """
    try:
        splits = read_json(folder / MANIFEST_FILE)["splits"].values()
        return [(Path(split["columns"]).name, split["columns_sha256"]) for split in splits]
    except (AttributeError, KeyError, TypeError):
        raise InputError(
            f"{MANIFEST_FILE} in {remote.public} is not a manifest of shards",
            expected="a folder that shard_imagenet.py wrote",
        ) from None


@contextmanager
def _reservation(path: Path) -> Iterator[Path]:
    """Yield the file that stands for the space of a shard until it is downloaded; remove it."""
    reserved = path.with_name(f"{path.name}.reserved")
    reserved.unlink(missing_ok=True)  # of a process that was killed
    try:
        yield reserved
    finally:
        reserved.unlink(missing_ok=True)


def _is_there(path: Path) -> bool:
    """Return whether a shard is in the cache, and mark it as used now."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _size(path: Path) -> int:
    """Return a file's size; 0 when it has just gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _last_use(path: Path) -> float:
    """Return when a shard was last fetched; now, when it has just gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def open_shard(store: ShardStore, split: Split, shard: int) -> int:
    """Return a descriptor of a shard.

    It may be evicted from a cache before it is opened, and the cache may be removed.

    Raises:
        InputError: If it is missing or cannot be downloaded.
    """
    for _ in range(_OPEN_TRIES):
        try:
            return os.open(store.fetch(split.shards[shard]), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
    raise InputError(
        f"{split.shards[shard].name} vanished {_OPEN_TRIES} times before it could be opened",
        fix="give the cache of shards more space, and a folder that nobody else empties",
    )
