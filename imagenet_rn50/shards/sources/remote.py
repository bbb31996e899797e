"""Sources at an address: manifests of shards, and parquet files that are read by ranges.

A folder on the Hub is read at the commit that its revision names now; the manifest of the shards
records it. No second copy is kept on this machine: parquet files are read by row group into the
temporary files of the shards.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from imagenet_rn50.shards.manifest import FILE_NAME
from imagenet_rn50.shards.sources.base import Source, Unpacked
from imagenet_rn50.shards.sources.parquet import list_parquet
from imagenet_rn50.shards.sources.parquet_columns import ANY_COLUMNS, ColumnOptions
from imagenet_rn50.shards.sources.parquet_files import has_splits
from imagenet_rn50.shards.sources.scan import reason_of
from imagenet_rn50.shards.sources.shards import read_shards
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.storage import FileInfo, RemoteFolder

_DEPTH = 3  # of parquet files in the folder
_MAX_SHOWN = 5


def read_remote(
    address: str,
    layout: str | None = None,
    train_only: bool = False,
    *,
    cache: Path | None = None,
    column_options: ColumnOptions = ANY_COLUMNS,
    allow_test: bool = True,
) -> Source:
    """List the images of a source at an address.

    Args:
        address: A folder with a manifest, or with parquet files.
        layout: `shards` or `parquet`; None to find out.
        train_only: Whether validation is left out.
        cache: Where remote shards are kept on this machine.
        column_options: Options that select the columns of parquet files.
        allow_test: Whether to validate on the split `test` if there is no validation split.

    Raises:
        InputError: When there is neither, or it cannot be read.
    """
    remote = RemoteFolder(address)
    if layout not in {None, "shards", "parquet"}:
        raise InputError(
            f"the source {remote.public} is remote",
            expected="shards or parquet files",
            found=f"--layout {layout}",
            fix="download it, and give its folder",
        )
    # Few web servers list their folders, so only a manifest tells what is there.
    if layout == "shards" or (layout is None and urlsplit(address).scheme in {"http", "https"}):
        return read_shards(address, train_only, cache=cache)
    pinned = remote.at_commit()
    infos = pinned.files(_DEPTH)
    if layout is None and FILE_NAME in infos:
        return read_shards(pinned.location, train_only, cache=cache)
    files = RemoteFiles(pinned, infos)
    if layout is None and not has_splits(files.names()):
        raise _without_images(remote, infos)
    source = list_parquet(files, train_only, column_options, allow_test=allow_test)
    return replace(
        source,
        name=_name_of(remote.public),
        options={"source": pinned.public} | source.options,
        # Of a repository, the commit in its address says it all.
        fingerprint=None if _is_repository(address) else _fingerprint(infos),
    )


def _is_repository(address: str) -> bool:
    return address.startswith("hf://") and not address.startswith("hf://buckets/")


def _fingerprint(infos: Mapping[str, FileInfo]) -> str:
    """Return what changes with the content of a parquet file, as far as the storage tells."""
    entries = [(n, astuple(info)) for n, info in sorted(infos.items()) if n.endswith(".parquet")]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _without_images(remote: RemoteFolder, names: Mapping[str, object]) -> InputError:
    """Return the error for a folder without manifest and parquet files."""
    tars = [name for name in names if name.endswith(".tar")]
    fix = "give the address of the folder that holds them"
    if not tars and remote.location.startswith("hf://datasets/") and "@" not in remote.location:
        fix += (
            "; the Hub may have made parquet files of the data set: --source "
            f"{remote.public.rstrip('/')}@refs/convert/parquet"
        )
    if tars:
        fix = (
            f"index them, and pack the index: python shard_imagenet.py index --shards "
            f"{remote.public} --out INDEX; python shard_imagenet.py pack --source INDEX"
        )
    return InputError(
        f"the source {remote.public} is laid out in no way that is known",
        expected=f"{FILE_NAME} of shards, or data/train-*.parquet",
        found=", ".join([*tars, *names][:_MAX_SHOWN]) or "no files",
        fix=fix,
    )


def _name_of(address: str) -> str:
    """Return the name of the data set at an address: of the repository, or the last folder."""
    parts = urlsplit(address)
    path = [part for part in parts.path.split("/") if part]
    if parts.scheme == "hf" and path:
        return path[1 if parts.netloc == "datasets" and len(path) > 1 else 0].partition("@")[0]
    return path[-1] if path else parts.netloc


@dataclass(frozen=True)
class RemoteFiles:
    """The parquet files of a remote folder.

    Args:
        remote: The folder.
        infos: What is known of each file in it, by name.
    """

    remote: RemoteFolder
    infos: Mapping[str, FileInfo]
    is_remote: bool = True

    @property
    def root(self) -> str:
        """The address, without its secrets."""
        return self.remote.public

    def names(self) -> list[str]:
        """Return the parquet files; hidden folders are of tools."""
        return [
            name
            for name in self.infos
            if name.endswith(".parquet") and not any(p.startswith(".") for p in name.split("/"))
        ]

    def others(self, folder: str, taken: set[str]) -> list[Unpacked]:
        """Count what a folder holds beside the names in `taken`, one entry per name."""
        parent = PurePosixPath(folder)
        below = [
            PurePosixPath(name).relative_to(parent).parts
            for name in self.infos
            if parent in PurePosixPath(name).parents
        ]
        counts = Counter(parts[0] + "/" * (len(parts) > 1) for parts in below)
        return [
            Unpacked("", (parent / name).as_posix() + "/" * name.endswith("/"), reason_of(name), n)
            for name, n in sorted(counts.items())
            if name.removesuffix("/") not in taken
        ]

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        size = self.infos[name].num_bytes
        return (self.remote.info(name).num_bytes or 0) if size is None else size

    def open(self, name: str) -> Any:
        """Return a file object that reads ranges."""
        return _RangeFile(self.remote, name, self.size(name))


class _RangeFile(io.RawIOBase):
    """A remote file that is read where pyarrow looks into it; broken reads are repeated."""

    def __init__(self, remote: RemoteFolder, name: str, num_bytes: int) -> None:
        super().__init__()
        self._remote = remote
        self._name = name
        self._num_bytes = num_bytes
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}
        self._position = origin[whence] + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        begin = min(self._position, self._num_bytes)
        end = self._num_bytes if size is None or size < 0 else min(begin + size, self._num_bytes)
        content = self._remote.read(self._name, begin, end) if end > begin else b""
        self._position = end
        return content
