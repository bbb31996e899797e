"""Remote shards, cached in a bounded folder that all ranks and workers of a machine share.

    CACHE/
      <hash of the address>/   manifest.json, manifest-*.npz, classes.json
      shards/                  <sha256>.tar      whole and checked when it was downloaded
                               <sha256>.lock     held by the process that downloads or discards it
                               <sha256>.tar.PID.partial, .tar.reserved    while it is downloaded
      evict.lock               held while space is made

A shard's name is its hash, so data sets never mix, and a shard that was packed again is downloaded
again. A shard that is damaged when it is read is discarded and downloaded again. Locks are `flock`:
the kernel releases them when a process dies, however it dies.

`Prefetcher` reads whole shards ahead, front to back. Samples are read at random within a window of
shards, which is slow on a cold disk; so a thread reads each shard into the page cache (or downloads
it) before its turn. The kernel reads only a few MB per advice, however long its range, so it
advises in small pieces, which costs almost nothing if the bytes are in memory already.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from imagenet_rn50.classes import FILE_NAME as CLASSES_FILE
from imagenet_rn50.data.reader import LocalShards, ShardStore, open_shard
from imagenet_rn50.data.sampler import Order
from imagenet_rn50.shards.manifest import FILE_NAME as MANIFEST_FILE
from imagenet_rn50.shards.manifest import Shard, Split
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import make_folder, read_json
from imagenet_rn50.utils.storage import DEFAULT_RETRY_POLICY, RemoteFolder, RetryPolicy

DEFAULT_LIMIT_BYTES = 100 * 10**9
_PAUSE = 0.05


@dataclass(frozen=True)
class CachedShards:
    """Shards of a remote folder, downloaded when needed; the least recently used are evicted first.

    Args:
        remote: The folder.
        cache: Folder on this machine, best on a local NVMe disk.
        limit_bytes: How much space the shards in it may take, those of other data sets included.
    """

    remote: RemoteFolder
    cache: Path
    limit_bytes: int

    @property
    def folder(self) -> Path:
        """Local folder of the manifest."""
        return self.cache / hashlib.sha256(self.remote.public.encode()).hexdigest()[:16]

    @property
    def _shards(self) -> Path:
        return self.cache / "shards"

    def fetch_manifest(self) -> None:
        """Download the manifest and the classes, so that `folder` can be loaded as if local.

        Raises:
            InputError: If they cannot be downloaded.
        """
        make_folder(self.folder, fix="name another folder with --cache")
        with _locked(self.folder / "manifest.lock"):
            self.remote.download(MANIFEST_FILE, self.folder / MANIFEST_FILE, is_json=True)
            for name, digest in self._columns():
                self.remote.download(name, self.folder / name, sha256=digest)
            self.remote.download(CLASSES_FILE, self.folder / CLASSES_FILE, is_json=True)

    def _columns(self) -> list[tuple[str, str]]:
        """Return name and hash of each file that the manifest consists of besides the JSON.

        Raises:
            InputError: If the JSON is not a manifest.
        """
        try:
            splits = read_json(self.folder / MANIFEST_FILE)["splits"].values()
            return [(Path(split["columns"]).name, split["columns_sha256"]) for split in splits]
        except (AttributeError, KeyError, TypeError):
            raise InputError(
                f"{MANIFEST_FILE} in {self.remote.public} is not a manifest of shards",
                expected="a folder that shard_imagenet.py wrote",
            ) from None

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
            with _locked(path.with_suffix(".lock")):
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

    def discard(self, shard: Shard, descriptor: int) -> bool:
        """Remove a damaged copy, unless another process has replaced it already."""
        path = self._path(shard)
        with suppress(FileNotFoundError), _locked(path.with_suffix(".lock")):
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
        """Make space and downloads; the caller holds the shard's lock."""
        reserved = path.with_name(f"{path.name}.reserved")
        reserved.unlink(missing_ok=True)  # of a process that was killed
        try:
            while not self._make_space(shard, reserved):
                time.sleep(_PAUSE)  # until a download that takes the space is whole
            self.remote.download(shard.name, path, num_bytes=shard.num_bytes, sha256=shard.sha256)
        finally:
            reserved.unlink(missing_ok=True)

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
        with _locked(self.cache / "evict.lock"):
            used = self._remove_leftovers() + shard.num_bytes
            for path in sorted(self._shards.glob("*.tar"), key=_last_use):
                if used <= self.limit_bytes:
                    break
                used -= _size(path)
                path.unlink(missing_ok=True)
            if used > self.limit_bytes:
                return False
            with reserved.open("wb") as file:  # counts from the start with all its bytes
                os.truncate(file.fileno(), shard.num_bytes)
            return True

    def _remove_leftovers(self) -> int:
        """Remove what killed processes left; return how many bytes the rest takes."""
        used = sum(_size(path) for path in self._shards.glob("*.tar"))
        for reserved in self._shards.glob("*.reserved"):
            whole = reserved.with_suffix("")
            with _try_lock(whole.with_suffix(".lock")) as is_free:
                if is_free:
                    reserved.unlink(missing_ok=True)
                    for partial in self._shards.glob(f"{whole.name}.*partial"):
                        partial.unlink(missing_ok=True)
                else:
                    used += _size(reserved)
        return used


def open_shards(
    location: str | Path,
    *,
    cache: Path | None = None,
    limit_bytes: int = DEFAULT_LIMIT_BYTES,
    retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY,
) -> ShardStore:
    """Open a folder of shards, wherever it is; its manifest can then be loaded from `folder`.

    Args:
        location: A path, or an address that fsspec understands, such as s3://bucket/imagenet.
        cache: Where remote shards are kept on this machine.
        limit_bytes: How much space they may take there.
        retry_policy: How often downloads are retried.

    Raises:
        InputError: If a remote manifest cannot be downloaded, or no cache is given for it.
    """
    if "://" not in str(location):
        return LocalShards(Path(location))
    remote = RemoteFolder(str(location), retry_policy)
    if cache is None:
        raise InputError(
            f"{remote.public} is remote",
            expected="a local folder for the cache of shards",
        )
    shards = CachedShards(remote, cache, limit_bytes)
    shards.fetch_manifest()
    return shards


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock among the processes, and threads, of this machine."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Take a lock if it is free; yield whether it was."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


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


_PIECE_BYTES = 128 << 10  # what the least read-ahead limit in use lets one advice read
_SHARDS_AHEAD = 2

log = logging.getLogger(__name__)


class Prefetcher:
    """Read the shards of one loader worker ahead, in a thread.

    Args:
        store: Opens the shards.
        split: The manifest of the split.
        order: When each shard is needed.
        worker: This worker, from 0: it reads every `num_workers`-th turn.
        num_workers: Number of workers.
    """

    def __init__(
        self, store: ShardStore, split: Split, order: Order, worker: int, num_workers: int
    ) -> None:
        self._store = store
        self._split = split
        self._order = order
        self._worker = worker
        self._num_workers = num_workers
        self._position: int | None = None
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def advance(self, position: int) -> None:
        """Set the position of the stream that is read now; the first call starts the thread."""
        with self._changed:
            started, self._position = self._position is not None, position
            self._changed.notify()
        if not started:
            self._thread.start()

    def close(self) -> None:
        """Stop reading ahead, after the piece or the download that is under way."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _run(self) -> None:
        """Read turn after turn, never further ahead than necessary."""
        turn = -1
        try:
            while (position := self._next_position(turn)) is not None:
                turn = max(turn + 1, self._order.active_shards(position).start)
                if turn % self._num_workers == self._worker:
                    self._read(self._order.shard_at(turn))
        except IndexError:  # the last turn is done
            return
        except (InputError, OSError) as error:
            # The reader that needs the shard meets the same error, and can name the sample.
            log.debug("reading ahead stopped: %s", error)

    def _next_position(self, turn: int) -> int | None:
        """Wait until the turn after `turn` is near; returns the position, or None to stop."""
        with self._changed:
            while not self._stopped:
                assert self._position is not None
                near = self._order.active_shards(self._position).stop + self._ahead
                if turn + 1 < near:
                    return self._position
                self._changed.wait()
        return None

    @property
    def _ahead(self) -> int:
        """How many turns before its use a shard is read: all workers have one each in hand."""
        return self._num_workers + _SHARDS_AHEAD

    def _read(self, shard: int) -> None:
        """Read one shard into memory, or only download it if the system has no `posix_fadvise`."""
        descriptor = open_shard(self._store, self._split, shard)
        try:
            if not hasattr(os, "posix_fadvise"):
                return
            for offset in range(0, self._split.shards[shard].num_bytes, _PIECE_BYTES):
                if self._stopped:
                    return
                os.posix_fadvise(descriptor, offset, _PIECE_BYTES, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def least_cache_bytes(split: Split, order: Order, num_workers: int) -> int:
    """Return how much space a cache of shards needs, so that none is fetched twice an epoch."""
    in_use = len(order.active_shards(split.num_samples // 2)) + max(num_workers, 1) + _SHARDS_AHEAD
    largest = sorted((shard.num_bytes for shard in split.shards), reverse=True)
    return sum(largest[:in_use])
