"""What an interrupted `index` resumes from.

    OUT/.indexing/
      lock                       held while a process indexes into OUT
      plan.json                  what is indexed: location, label key
      source/                    _info.json, classes.json, LOC_synset_mapping.txt of remote shards
      train%2F000.tar.json       what a shard that was read holds
      train%2F000.tar.download   a remote shard that is being read

The folder is deleted when the manifest is written, and when nothing in it is worth keeping.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from imagenet_rn50.shards.listing import FoundShard
from imagenet_rn50.shards.scan import ScannedShard
from imagenet_rn50.shards.writer import describe_difference
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import (
    lock_or_raise,
    make_folder,
    read_json,
    write_json,
    write_text,
)
from imagenet_rn50.utils.formatting import quoted
from imagenet_rn50.utils.logging import logger
from imagenet_rn50.utils.storage import FileInfo

FOLDER = ".indexing"
_DOWNLOAD = ".download"


class IndexingState:
    """The `.indexing` folder of an output folder.

    Args:
        out: The folder that gets the manifest.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._folder = out / FOLDER
        self._plan = self._folder / "plan.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other indexing processes; remove it if nothing is worth keeping.

        Raises:
            InputError: When another process indexes into it, or it cannot be written.
        """
        make_folder(self._folder, fix="give another folder for the manifest: --out DIR")
        refusal = InputError(
            f"another process is indexing into {self._out}",
            fix="wait for it, or give another --out",
        )
        with lock_or_raise(self._folder / "lock", refusal):
            try:
                yield
            finally:
                with suppress(OSError):
                    if not self.num_records:
                        self.forget()

    def adopt(self, identity: dict[str, Any]) -> float:
        """Start indexing, or resume an interrupted run.

        Args:
            identity: What is read, and how labels are.

        Returns:
            When the first run began, in seconds since the epoch.

        Raises:
            InputError: When the folder holds an unfinished index of other shards.
        """
        for path in [*self._folder.glob(f"*{_DOWNLOAD}"), *self._folder.glob("*.partial")]:
            path.unlink(missing_ok=True)
        begun = read_json(self._plan) if self._plan.exists() and self.num_records else None
        if begun is not None and begun.get("location") != identity["location"]:
            raise self._another(begun, identity)
        if begun != identity:
            for path in self._folder.glob("*.tar.json"):  # read with other options
                path.unlink()
            if begun is not None:
                logger.info(
                    f"Reading all shards again: {describe_difference(begun, identity)} since "
                    f"indexing into {self._out} began."
                )
            write_json(self._plan, identity)
        return self._plan.stat().st_mtime

    def _another(self, begun: dict[str, Any], identity: dict[str, Any]) -> InputError:
        commits = commit_of(begun.get("location")), commit_of(identity["location"])
        if None not in commits and commits[0] != commits[1]:
            return InputError(
                f"the revision moved since indexing into {self._out} began",
                expected=f"commit {commits[0]}, of which {self.num_records} shards were read",
                found=f"commit {commits[1]}",
                fix=f"finish the first: --shards {quoted(begun['location'])}; "
                f"or delete {self._folder} to begin again",
            )
        return InputError(
            f"{self._out} holds an unfinished index of other shards",
            expected=f"the shards at {begun.get('location')}",
            found=f"those at {identity['location']}",
            fix=f"give another --out, or delete {self._folder}",
        )

    @property
    def source(self) -> Path:
        """Folder for the small files beside remote shards."""
        return self._folder / "source"

    @property
    def num_records(self) -> int:
        """Number of shards that were read."""
        return sum(1 for _ in self._folder.glob("*.tar.json"))

    def download_path(self, name: str) -> Path:
        """Return where a remote shard is kept while it is read."""
        return self._folder / f"{quote(name, safe='')}{_DOWNLOAD}"

    def save(self, scanned: ScannedShard) -> None:
        """Save what a shard holds."""
        write_text(self._record_path(scanned.record.shard.name), json.dumps(scanned.as_dict()))

    def load(self, found: FoundShard, info: FileInfo) -> ScannedShard | None:
        """Return what a shard holds, if it was read; None when it must be read (again).

        Args:
            found: The shard.
            info: What is known of the file now. If it differs from what was known when the shard
                was read, or if nothing is known that would differ, it must be read again.
        """
        try:
            content = json.loads(self._record_path(found.name).read_text(encoding="utf-8"))
            scanned = ScannedShard.from_dict(content)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None
        if info != scanned.info or (info.sha256 is None and info.version is None):
            return None
        scanned.record.split = found.split
        return scanned

    def forget(self) -> None:
        """Remove the folder, when the manifest has taken its place."""
        shutil.rmtree(self._folder)

    def _record_path(self, name: str) -> Path:
        return self._folder / f"{quote(name, safe='')}.json"


def commit_of(location: str | None) -> str | None:
    """Return the commit in the address of a repository on the Hub; None where there is none."""
    if location is None or not location.startswith("hf://"):
        return None
    return location.partition("@")[2].partition("/")[0] or None
