"""What a packing that was cut short leaves behind, so that the next run goes on from there.

    SHARDS/.packing/
      lock                          held while a process packs into SHARDS
      plan.json                     identity of source and options
      imagenet1k-train-0000.tar.json    what the finished shard holds, with its hash
      imagenet1k-train-0001.tar.spool   pictures of a shard that is to be made, from parquet only

The folder goes when the manifest is written.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imagenet_rn50.console import progress_bar
from imagenet_rn50.errors import InputError
from imagenet_rn50.files import TEMPORARY_SUFFIX, make_folder, read_json, sha256_of_file, write_json
from imagenet_rn50.shards.plan import ShardTask
from imagenet_rn50.shards.shard import ShardRecord
from imagenet_rn50.shards.spool import SUFFIX, remove_all, spread

FOLDER = ".packing"


class PackingState:
    """The `.packing` folder of an output folder.

    Args:
        out: The folder that gets the shards.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._folder = out / FOLDER

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes sure that no other process packs into the same folder meanwhile.

        Raises:
            InputError: When one does, or the folder cannot be written.
        """
        make_folder(self._folder, fix="give another --out")
        with (self._folder / "lock").open("w", encoding="utf-8") as file:
            try:
                # Unlike flock, not inherited by workers, who may outlive a killed parent a moment.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"another process is packing into {self._out}",
                    fix="wait for it, or give another --out",
                ) from None
            yield

    def adopt(self, identity: dict[str, Any]) -> None:
        """Starts a packing, or takes up the one that was cut short.

        Args:
            identity: Source and options; what decides the bytes.

        Raises:
            InputError: When the folder holds the beginning of another packing.
        """
        path = self._folder / "plan.json"
        if path.exists() and (begun := read_json(path)) != identity:
            raise InputError(
                f"{self._out} holds the beginning of another packing",
                expected="the same source and options as before",
                found=describe_difference(begun, identity),
                fix=f"give the former options, or another --out, or delete {self._out}",
            )
        write_json(path, identity)

    def spread(self, tasks: Sequence[ShardTask]) -> list[ShardTask]:
        """Reads sources that cannot be read shard by shard; see `spool`."""
        if not tasks or tasks[0].layout != "parquet":
            return list(tasks)
        return spread(tasks, self._folder)

    def remove_leftovers(self) -> None:
        """Deletes half-written and temporary files of processes that were killed."""
        remove_all(self._folder)
        for folder in (self._out, self._folder):
            for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
                path.unlink(missing_ok=True)

    def save(self, record: ShardRecord) -> None:
        """Remembers a finished shard, and lets go of what was only needed to make it."""
        record.save(self._record_path(record.shard.name))
        (self._folder / f"{record.shard.name}{SUFFIX}").unlink(missing_ok=True)

    def all_finished(self, tasks: Sequence[ShardTask]) -> dict[str, ShardRecord]:
        """Returns the records of the shards that are there and whole, by the shard's name."""
        begun = [task for task in tasks if self._record_path(task.name).is_file()]
        found = {}
        with progress_bar(
            total=len(begun), description="checking", unit="shard", enabled=bool(begun)
        ) as bar:
            for task in begun:
                if (record := self._finished(task)) is not None:
                    found[task.name] = record
                bar.update()
        return found

    def _finished(self, task: ShardTask) -> ShardRecord | None:
        """Returns the record of a shard that is there and whole; None when it has to be made."""
        path = self._out / task.name
        try:
            record = ShardRecord.load(self._record_path(task.name))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        shard = record.shard
        if not path.is_file() or path.stat().st_size != shard.num_bytes:
            return None
        if record.left_out and task.options.on_bad == "stop":
            return None  # made by a run that left bad pictures out
        return record if sha256_of_file(path) == shard.sha256 else None

    def forget(self) -> None:
        """Removes the folder, when the manifest has taken its place."""
        shutil.rmtree(self._folder)

    def _record_path(self, shard_name: str) -> Path:
        return self._folder / f"{shard_name}.json"


def describe_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Says in words in which entries two identities differ."""
    return ", ".join(
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    )
