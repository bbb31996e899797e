"""Which parquet files are of which split: by their names, or those of their folders."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from imagenet_rn50.shards.manifest import TRAIN, VALIDATION
from imagenet_rn50.shards.sources.base import Unpacked
from imagenet_rn50.shards.sources.scan import others_beside
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.formatting import quoted

TEST = "test"
_SPLIT_NAMES = {
    "train": TRAIN,
    "validation": VALIDATION,
    "valid": VALIDATION,
    "val": VALIDATION,
    "test": TEST,
}
# `train-00002-of-00004.parquet`, with a hash behind it in older downloads; `train-2.parquet`; or
# `0002.parquet` in a folder of the split.
_NUMBERED = re.compile(
    r"(?P<head>(?:.+?[-_.])?)(?P<number>\d+)(?:-of-(?P<total>\d+))?"
    r"(?P<tail>(?:-[0-9a-f]+)?\.parquet)"
)
_FOLDER = "data"
_MAX_SHOWN = 5


class ParquetFiles(Protocol):
    """The files of a folder, on this machine or not."""

    @property
    def root(self) -> Path | str:
        """The folder, for messages."""

    @property
    def is_remote(self) -> bool:
        """Whether each read takes its time."""

    def names(self) -> list[str]:
        """Return the parquet files that may be of a split, relative to the folder."""

    def others(self, folder: str, taken: set[str]) -> list[Unpacked]:
        """Name what a folder below holds beside the names in `taken`."""

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""

    def open(self, name: str) -> Any:
        """Return a file as pyarrow opens it: a path, or a file object."""


@dataclass(frozen=True)
class LocalFiles:
    """Files on this machine.

    Args:
        root: Their folder.
    """

    root: Path
    is_remote: bool = False

    def names(self) -> list[str]:
        """Return the parquet files at the depths at which data sets have them."""
        depths = ["*.parquet", "[!.]*/*.parquet", *(f"[!.]*/{s}/*.parquet" for s in _SPLIT_NAMES)]
        found = {path for depth in depths for path in self.root.glob(depth) if path.is_file()}
        return [path.relative_to(self.root).as_posix() for path in sorted(found)]

    def others(self, folder: str, taken: set[str]) -> list[Unpacked]:
        """Name what a folder holds beside the names in `taken`."""
        return others_beside(self.root, self.root / folder, taken)

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return (self.root / name).stat().st_size

    def open(self, name: str) -> Any:
        """Return the path of a file."""
        return self.root / name


def has_splits(names: Iterable[str]) -> bool:
    """Return whether one of these parquet files is of a training or a validation split."""
    splits = _files_of_splits(names).values()
    return any({TRAIN, VALIDATION} & files.keys() for files in splits)


def _split_of(name: str) -> tuple[str, str] | None:
    """Return folder and split of a parquet file; None where its name tells no split."""
    path = PurePosixPath(name)
    folder = path.parent
    if split := _SPLIT_NAMES.get(re.split(r"[-_.]", path.name)[0]):
        return folder.as_posix(), split
    if split := _SPLIT_NAMES.get(folder.name):
        return folder.parent.as_posix(), split
    return None


def _files_of_splits(names: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Return the files of each split of each folder, by name."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(names):
        if (where := _split_of(name)) is not None:
            folder, split = where
            found[folder][split].append(name)
    return found


def choose_folder(files: ParquetFiles) -> tuple[str, dict[str, list[str]]]:
    """Return the folder of the splits, relative to the root, and their files.

    Raises:
        InputError: When there are none, or several folders have splits, as configurations do.
    """
    found = _files_of_splits(files.names())
    for folder in (_FOLDER, "."):
        if folder in found:
            return folder, found[folder]
    if not found:
        raise InputError(
            f"the source {files.root} holds no parquet files of a split",
            expected="data/train-*.parquet or data/validation-*.parquet",
        )
    if len(found) > 1:
        raise InputError(
            f"{files.root} holds several data sets",
            expected="one, since the others would not be packed",
            found=", ".join(found),
            fix=" or ".join(
                f"--source {quoted(f'{files.root}/{name}')}" for name in list(found)[:_MAX_SHOWN]
            ),
        )
    return next(iter(found.items()))


def files_beside(
    files: ParquetFiles, folder: str, found: Mapping[str, Sequence[str]]
) -> list[Unpacked]:
    """Name what lies beside the files of the splits, and in their folders."""
    by_folder: dict[str, set[str]] = defaultdict(set)
    by_folder[folder] = set()
    for names in found.values():
        for path in map(PurePosixPath, names):
            by_folder[path.parent.as_posix()].add(path.name)
            if path.parent.as_posix() != folder:
                by_folder[folder].add(path.parent.name)
    beside = [entry for where, taken in by_folder.items() for entry in files.others(where, taken)]
    if folder != ".":  # whose entries are all named by now
        beside += [
            Unpacked("", name, "of another data set")
            for where, splits in _files_of_splits(files.names()).items()
            if where != folder
            for names in splits.values()
            for name in names
        ]
    return beside


def require_no_gap(root: Path | str, names: Sequence[str]) -> None:
    """Raise an error if a file of a numbered set is missing, or there are files of two sets."""
    paths = [PurePosixPath(name) for name in names]
    matches = [match for path in paths if (match := _NUMBERED.fullmatch(path.name))]
    if not matches:
        return
    where = f"{root}/{paths[0].parent}".removesuffix("/.")
    sets = {(match["head"], match["total"]) for match in matches}
    if len(sets) > 1 or len(matches) != len(paths) or len({path.parent for path in paths}) > 1:
        raise InputError(
            f"{where} holds parquet files of several sets of the same split",
            expected="one numbered set, such as train-00000-of-00004.parquet to train-00003-of-...",
            found=", ".join(path.name for path in paths[:_MAX_SHOWN]),
            fix="move all but one of the sets elsewhere",
        )
    by_number = {int(match["number"]): match for match in matches}
    last = matches[-1]
    total = int(last["total"]) if last["total"] else max(by_number) + 1
    first = 0 if last["total"] else min(1, min(by_number))
    missing = [number for number in range(first, total) if number not in by_number]
    if missing or len(by_number) != len(matches) or max(by_number) >= max(total, 1):
        absent = [
            f"{last['head']}{number:0{len(last['number'])}d}"
            + (f"-of-{last['total']}" if last["total"] else "")
            + ".parquet"
            for number in missing
        ]
        raise InputError(
            f"{where}/{absent[0]} is missing"
            if absent
            else f"{where} holds a file of a numbered set twice, or too many",
            expected=f"{total - first} files, numbered without a gap",
            found=f"{len(paths)} files" + (f"; {len(absent)} missing" if absent else ""),
            fix="fetch the files again that are missing"
            if absent
            else "move the surplus elsewhere",
        )
