"""Bytes of samples, read by offset from shards that are local or downloaded first."""

from __future__ import annotations

import logging
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from imagenet_rn50.shards.manifest import Split
from imagenet_rn50.shards.store import ShardStore, open_shard
from imagenet_rn50.utils.errors import RankError

_MAX_OPEN_SHARDS = 64

log = logging.getLogger(__name__)


class SampleError(RankError):
    """One sample cannot be read or decoded; the others may be whole."""


class ShardReader:
    """Read single samples out of tar shards without walking the tars.

    Args:
        store: Opens the shards.
        split: The manifest of the split.
        max_open: How many shards to keep open.
    """

    def __init__(
        self, store: ShardStore, split: Split, *, max_open: int = _MAX_OPEN_SHARDS
    ) -> None:
        self._store = store
        self._split = split
        self._max_open = max_open
        self._descriptors: OrderedDict[int, int] = OrderedDict()  # least recently used first
        self._renewed: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def read(self, index: int) -> bytes:
        """Return the JPEG of sample `index`, checked against the manifest's CRC-32 if it has one.

        A shard that is damaged in a cache is downloaded again, once.

        Raises:
            SampleError: If it has changed since the manifest was written, its shard is shorter
                than the manifest says, or the disk fails.
            InputError: If its shard cannot be had.
        """
        try:
            return self._read(index)
        except SampleError as error:
            shard = self._split.shard_of(index)
            is_renewed = shard not in self._renewed and self._store.discard(
                self._split.shards[shard], self._descriptors[shard]
            )
            if not is_renewed:
                raise
            first, *_ = str(error).splitlines()
            log.warning("the cached copy is damaged, downloading it again: %s", first)
        self._renewed.add(shard)
        os.close(self._descriptors.pop(shard))
        return self._read(index)

    def _read(self, index: int) -> bytes:
        """Return the JPEG of sample `index`, from the shard as it is open now."""
        shard = self._split.shard_of(index)
        length, offset = int(self._split.lengths[index]), int(self._split.offsets[index])
        descriptor = self._descriptor(shard)
        try:
            jpeg = os.pread(descriptor, length, offset)
        except OSError as error:
            raise SampleError(
                f"{self.describe_sample(index)} cannot be read",
                found=error.strerror,
                fix=self._store.repair,
            ) from None
        if len(jpeg) != length:
            raise SampleError(
                f"{self._split.shards[shard].name} ends within {self.describe_sample(index)}",
                expected=f"{length} bytes at offset {offset}",
                found=f"{len(jpeg)} bytes",
                fix=self._store.repair,
            )
        crc32s = self._split.crc32s
        if crc32s is not None and (crc32 := zlib.crc32(jpeg)) != crc32s[index]:
            raise SampleError(
                f"{self.describe_sample(index)} is damaged",
                expected=f"CRC-32 {crc32s[index]:08x}, as in the manifest",
                found=f"CRC-32 {crc32:08x}",
                fix=self._store.repair,
            )
        return jpeg

    def describe_sample(self, index: int) -> str:
        """Describe a sample for messages: key, shard and offset."""
        shard = self._split.shards[self._split.shard_of(index)].name
        return f"sample {self._split.key_of(index)} ({shard}, offset {self._split.offsets[index]})"

    def fallback_indices(self, index: int) -> Iterator[int]:
        """Yield the other samples of the same shard, from the next one on, wrapping around."""
        shard = self._split.shard_of(index)
        start, stop = (int(value) for value in self._split.shard_starts[shard : shard + 2])
        yield from range(index + 1, stop)
        yield from range(start, index)

    def close(self) -> None:
        """Close all shards."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _descriptor(self, shard: int) -> int:
        """Return an open descriptor of a shard."""
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
            return self._descriptors[shard]
        descriptor = open_shard(self._store, self._split, shard)
        if hasattr(os, "posix_fadvise"):
            # Samples are read at random; the prefetcher reads what lies around them.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        self._descriptors[shard] = descriptor
        if len(self._descriptors) > self._max_open:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor
