"""Where shards stand: in a folder of this machine, or somewhere they are fetched from first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from imagenet_rn50.errors import InputError
from imagenet_rn50.shards.manifest import Shard


class ShardStore(Protocol):
    """Hands out shards as files."""

    @property
    def folder(self) -> Path:
        """Where the manifest stands, on this machine."""

    def fetch(self, shard: Shard) -> Path:
        """Returns the shard's file, whole, however long it takes to get it here.

        Raises:
            InputError: When it cannot be had.
        """

    def discard(self, shard: Shard, descriptor: int) -> bool:
        """Discards the damaged copy of a shard that `descriptor` is open on, if it is one.

        Returns:
            Whether `fetch` now gets another copy.
        """

    @property
    def repair(self) -> str:
        """What the user can do about a damaged sample, of which there is no better copy."""


@dataclass(frozen=True)
class LocalShards:
    """Shards beside their manifest in a folder of this machine.

    Args:
        folder: That folder.
    """

    folder: Path

    def fetch(self, shard: Shard) -> Path:
        """Returns where the shard stands.

        Raises:
            InputError: When it is not there.
        """
        path = self.folder / shard.name
        if not path.is_file():
            raise InputError(
                f"there is no shard {path}",
                expected="every shard that the manifest lists",
                fix="copy it back, or pack again: finished shards are kept",
            )
        return path

    def discard(self, shard: Shard, descriptor: int) -> bool:
        """Keeps the shard, for it is the original."""
        return False

    @property
    def repair(self) -> str:
        """What the user can do about a damaged sample."""
        return (
            f"python shard_imagenet.py verify --shards {self.folder} names all that is damaged: "
            "copy those shards back, or train without the samples by --on-error substitute"
        )
