"""Bytes of samples, by offset, from local shards."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

from imagenet_rn50.errors import InputError
from imagenet_rn50.shards.manifest import Split

_MAX_OPEN_SHARDS = 64


class ShardReader:
    """Reads single samples out of tar shards without walking the tars.

    Args:
        folder: Where the shards stand.
        split: Says where each sample stands.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        self._folder = folder
        self._split = split
        self._descriptors: OrderedDict[int, int] = OrderedDict()  # least recently used first

    def read(self, index: int) -> bytes:
        """Returns the JPEG of sample `index`.

        Raises:
            InputError: When its shard is missing or shorter than the manifest says.
        """
        shard = self._split.shard_of(index)
        length = int(self._split.lengths[index])
        jpeg = os.pread(self._descriptor(shard), length, int(self._split.offsets[index]))
        if len(jpeg) != length:
            raise InputError(
                f"{self._folder / self._split.shards[shard].name} ends within "
                f"sample {self._split.key_of(index)}",
                expected=f"{length} bytes at offset {self._split.offsets[index]}",
                found=f"{len(jpeg)} bytes",
                fix=f"python shard_imagenet.py verify --shards {self._folder}",
            )
        return jpeg

    def close(self) -> None:
        """Closes all shards."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _descriptor(self, shard: int) -> int:
        """Returns an open descriptor of a shard, and asks the kernel to read all of it ahead."""
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
            return self._descriptors[shard]
        path = self._folder / self._split.shards[shard].name
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise InputError(
                f"there is no shard {path}",
                expected="every shard that the manifest lists",
                fix="copy it back, or pack again: finished shards are kept",
            ) from None
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        self._descriptors[shard] = descriptor
        if len(self._descriptors) > _MAX_OPEN_SHARDS:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor
