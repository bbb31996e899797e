"""Read shards several at a time, wherever they are.

A remote shard is downloaded to a file: into the cache, where training finds it, or else into the
output folder, from which it is deleted when it was read.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from imagenet_rn50.shards.indexing_state import IndexingState
from imagenet_rn50.shards.listing import FoundShard
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.scan import ScannedShard, scan_shard
from imagenet_rn50.shards.store import CachedShards
from imagenet_rn50.utils.formatting import counted
from imagenet_rn50.utils.logging import logger, progress_bar
from imagenet_rn50.utils.storage import FileInfo, RemoteFolder

_POLL_SECONDS = 0.2
_OPEN_TRIES = 3


class _StoppedError(Exception):
    """Another thread failed, or the user pressed Ctrl-C."""


@dataclass
class Scanner:
    """Read shards, several at a time.

    Args:
        state: Keeps what was read, and remote shards while they are read.
        label_key: The field of the samples' JSON that holds the label.
        folder: The folder of local shards.
        remote: The folder of remote ones.
        began: When the first run began; the cache keeps all that was used since.
        cache: Keeps remote shards; None for no cache.
    """

    state: IndexingState
    label_key: str | None
    folder: Path | None
    remote: RemoteFolder | None
    began: float
    cache: CachedShards | None = None

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._num_bytes = 0

    def read_all(self, found: list[FoundShard], num_threads: int) -> list[ScannedShard]:
        """Read the shards that no earlier run has read; return all of them in their order.

        Raises:
            InputError: When one cannot be read.
        """
        scanned: dict[str, ScannedShard] = {}
        if count := self.state.num_records:
            logger.info(f"{count} shards were read before; those that have not changed are kept")
        began = time.monotonic()
        with (
            ThreadPoolExecutor(num_threads) as pool,
            progress_bar(total=len(found), description="indexing", unit="shard") as bar,
        ):
            running: set[Future[ScannedShard]] = {pool.submit(self._read, each) for each in found}
            try:
                while running:
                    done, running = wait(running, _POLL_SECONDS, return_when=FIRST_COMPLETED)
                    for future in done:
                        shard = future.result()
                        scanned[shard.record.shard.name] = shard
                    rate = self._num_bytes / max(time.monotonic() - began, 1e-9)
                    bar.set_postfix_str(f"{rate / 1e6:.1f} MB/s", refresh=False)
                    bar.update(len(done))
                    if time.time() - bar.last_print_t > bar.mininterval:
                        bar.last_print_t = time.time()
                        bar.refresh()
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                self._log_kept(len(found))
                raise
        return [scanned[each.name] for each in found]

    def _log_kept(self, total: int) -> None:
        if count := self.state.num_records:
            logger.info(
                f"Stopped: {count} of {total} shards were read; "
                "run the same command again to resume."
            )

    def _tick(self, num_bytes: int) -> None:
        """Count bytes that were read; stop this thread if another one failed."""
        if self._stop.is_set():
            raise _StoppedError
        with self._lock:
            self._num_bytes += num_bytes

    def _check_stop(self) -> None:
        self._tick(0)

    def _read(self, found: FoundShard) -> ScannedShard:
        """Read one shard, unless an earlier run did."""
        self._check_stop()
        info = found.info
        if self.remote and info == FileInfo():  # as a web server lists files
            info = self.remote.info(found.name)
        if (known := self.state.load(found, info)) is not None:
            return known
        scanned = self._read_local(found) if self.remote is None else self._read_remote(found, info)
        scanned.info = info
        if bad := scanned.record.skipped:
            logger.warning(
                f"warning: {found.name}: {counted(len(bad), 'sample')} cannot be used: "
                f"{bad[0].key!r} {bad[0].reason}"
            )
        self.state.save(scanned)
        return scanned

    def _read_local(self, found: FoundShard) -> ScannedShard:
        assert self.folder is not None
        path = self.folder / found.name
        scanned = self._scan(found, path, None, str(path))
        self._tick(scanned.record.shard.num_bytes)
        return scanned

    def _read_remote(self, found: FoundShard, info: FileInfo) -> ScannedShard:
        """Download a shard, into the cache if there is space, and read it."""
        assert self.remote is not None
        where = f"{self.remote.public}/{found.name}"
        for _ in range(_OPEN_TRIES if self.cache else 0):
            assert self.cache is not None
            path = self.cache.add(found.name, info, began=self.began, tick=self._tick)
            if path is None:
                break
            with suppress(FileNotFoundError):  # evicted by another process
                return self._scan(found, path, path.stem, where)
        path = self.state.download_path(found.name)
        try:
            sha256 = self.remote.download(
                found.name,
                path,
                num_bytes=info.num_bytes,
                sha256=info.sha256,
                tick=self._tick,
                is_kept=False,
            )
            return self._scan(found, path, sha256, where)
        finally:
            path.unlink(missing_ok=True)

    def _scan(self, found: FoundShard, path: Path, sha256: str | None, where: str) -> ScannedShard:
        return scan_shard(
            path,
            name=found.name,
            split=found.split,
            where=where,
            sha256=sha256,
            label_key=self.label_key,
            check_stop=self._check_stop,
        )

    def log_cache(self, manifest: Manifest) -> None:
        """Log how many shards are not in the cache: there was no space, or no cache then."""
        if self.cache is None:
            return
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        if missing := sum(not self.cache.holds(shard) for shard in shards):
            logger.info(
                f"{missing} of {len(shards)} shards are not in the cache {self.cache.cache}, which "
                f"may take {self.cache.limit_bytes / 1e9:,.1f} GB: training downloads them"
            )
