"""Makes a manifest for WebDataset shards that others have made, by reading them once.

Nothing is extracted and no shard is touched. Names inside a tar are keys, never paths of ours; a
name that leads out of its folder is refused all the same, because such a tar is not to be trusted.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from imagenet_rn50.classes import FILE_NAME as CLASSES_NAME
from imagenet_rn50.classes import Classes
from imagenet_rn50.console import progress_bar, say
from imagenet_rn50.errors import InputError
from imagenet_rn50.jpeg_header import JpegError, read_header
from imagenet_rn50.shards import manifest as manifests
from imagenet_rn50.shards.finishing import finish
from imagenet_rn50.shards.images import TURNED
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest, Shard
from imagenet_rn50.shards.samples import TarSample, picture_of, samples_in
from imagenet_rn50.shards.shard import Remark, Row, ShardRecord
from imagenet_rn50.shards.sources.base import readable
from imagenet_rn50.shards.tar_walk import Buffer, TarError, mapped

_SHARD_NAME = re.compile(r"(?:(?P<dataset>.+?)[-_])?(?P<split>train|validation|val)[-_](\d+)\.tar")
_LARGEST_LABEL = 2**31 - 1  # of an int32 column
_WNID_IN_KEY = re.compile(r"(?:.*/)?(n\d{8})_.+")
MAPPING = "LOC_synset_mapping.txt"
_WITHOUT_CLASSES = (
    f"The classes are not known: {CLASSES_NAME} is not written, and training will refuse these "
    f"shards.\nIndex them again with their names: --mapping {MAPPING} --force"
)
_UNREADABLE = (
    "{number} pictures are no JPEGs, which training cannot read; "
    "they are listed in {folder}/audit.md.\n"
    "Train with --on-error substitute to do without them, or unpack the shards and pack them anew."
)


class FoundShard(NamedTuple):
    """A tar whose name says what it is."""

    split: str
    number: int
    dataset: str
    path: Path


def index(
    folder: Path,
    *,
    dataset: str | None = None,
    mapping: Path | None = None,
    force: bool = False,
    num_threads: int = 1,
) -> Manifest:
    """Reads the shards in `folder` and writes a manifest beside them.

    Args:
        folder: Holds `*train-0000.tar`, `*validation-00.tar` (or `-0000`, or `val`) and so on.
        dataset: The data set's name; None to take it from the shards' names.
        mapping: `LOC_synset_mapping.txt`, for the classes' names; None to look for it, or for
            `classes.json`, in `folder`, and else to take the wnids from the keys.
        force: Whether to write over a manifest that is whole.
        num_threads: How many shards are read at a time.

    Returns:
        The manifest that was written.

    Raises:
        InputError: When there are no shards, or one is damaged, unsafe or without labels; or there
            is no such mapping.
    """
    if mapping is not None and not mapping.is_file():
        raise InputError(
            f"--mapping {mapping} is not a file",
            found="a folder" if mapping.is_dir() else "nothing of that name",
            expected=f"Kaggle's {MAPPING}, or one like it",
        )
    shards = find_shards(folder)
    if not force:
        _require_no_manifest(folder)
    records: list[ShardRecord] = []
    with (
        ThreadPoolExecutor(num_threads) as pool,
        progress_bar(total=len(shards), description="indexing", unit="shard") as bar,
    ):
        for record in pool.map(_read_shard, shards):
            records.append(record)
            bar.update()
    _require_distinct_keys(records)
    if unreadable := sum(len(record.changed) for record in records):
        say(_UNREADABLE.format(number=unreadable, folder=folder))
    classes = _classes_of(folder, mapping, records)
    if classes is None:
        say(_WITHOUT_CLASSES)
    return finish(
        records,
        folder,
        dataset=dataset or shards[0].dataset,
        options={"indexed": True},
        classes=classes,
    )


def find_shards(folder: Path) -> list[FoundShard]:
    """Finds the shards by their names, training first, by number.

    Raises:
        InputError: When there are none, or one number comes in two spellings.
    """
    found = []
    for path in folder.glob("*.tar"):
        if match := _SHARD_NAME.fullmatch(path.name):
            split = TRAIN if match["split"] == TRAIN else VALIDATION
            found.append(FoundShard(split, int(match[3]), match["dataset"] or folder.name, path))
    if not found:
        names = ", ".join(sorted(path.name for path in folder.glob("*.tar"))[:3])
        raise InputError(
            f"{folder} holds no shards",
            expected="names like imagenet1k-train-0000.tar and imagenet1k-validation-00.tar",
            found=names or "no tar files",
        )
    found.sort()
    for one, other in zip(found, found[1:], strict=False):
        if one[:2] == other[:2]:
            raise InputError(
                f"{one.path.name} and {other.path.name} are the same shard in two spellings",
                expected=f"number {one.number} of {one.split} once",
                fix="move one of the two sets elsewhere",
            )
    return found


def _require_no_manifest(folder: Path) -> None:
    """Stops before a whole manifest would be replaced by what the shards hold now."""
    if not (folder / manifests.FILE_NAME).is_file():
        return
    try:
        Manifest.load(folder)
    except InputError:
        return  # damaged: to be replaced
    raise InputError(
        f"{folder} holds a manifest already",
        expected="shards without one",
        fix=f"compare the shards with it (python shard_imagenet.py verify --shards {folder}), "
        "or write it anew from what they hold now: --force",
    )


def _read_shard(found: FoundShard) -> ShardRecord:
    """Reads one shard whole."""
    path = found.path
    with mapped(path) as buffer:
        digest = hashlib.sha256(buffer).hexdigest()
        record = ShardRecord(found.split, Shard(path.name, 0, len(buffer), digest))
        try:
            for sample in samples_in(buffer):
                row, remark = _row_of(buffer, sample, path)
                record.rows.append(row)
                record.changed += [] if remark is None else [remark]
        except TarError as error:
            raise InputError(
                f"{path} {error}", expected="a whole tar", fix="fetch the shard again"
            ) from None
    record.shard = Shard(path.name, len(record.rows), record.shard.num_bytes, digest)
    return record


def _row_of(buffer: Buffer, sample: TarSample, path: Path) -> tuple[Row, Remark | None]:
    """Returns the row of one sample, and a remark when its picture is no JPEG or not upright."""
    if ".." in PurePosixPath(sample.key).parts or sample.key.startswith("/"):
        raise InputError(
            f"{path} holds the member {sample.key!r}, which leads out of its folder",
            expected="plain names such as n01440764_10026.jpg",
            fix="make the shard anew without it; nothing was extracted",
        )
    if not sample.key.isprintable():
        raise InputError(
            f"{path} holds the member {readable(sample.key)!r}", expected="printable UTF-8 names"
        )
    picture, label = picture_of(sample), sample.label(buffer)
    if label is not None and not 0 <= label <= _LARGEST_LABEL:
        label = None
    if picture is None or label is None:
        missing = "picture (.jpg, .jpeg, .png)" if picture is None else "label (.cls, or in .json)"
        raise InputError(
            f"the sample {sample.key!r} in {path} has no {missing}",
            expected="a picture and a class index, 0 or more, for each sample",
            found=f"members {', '.join(sorted(sample.members)) or 'none'}",
        )
    content = bytes(buffer[picture.offset : picture.offset + picture.size])
    width = height = 0
    remark = None
    try:
        header = read_header(content)
        width, height = header.width, header.height
        if header.orientation != 1:
            reason = f"not changed, but orientation {header.orientation}: {TURNED} as it is decoded"
            remark = Remark(path.name, sample.key, label, reason)
    except JpegError as error:
        remark = Remark(path.name, sample.key, label, f"not changed, but {error}")
    row = Row(
        key=sample.key,
        label=label,
        offset=picture.offset,
        length=picture.size,
        crc32=zlib.crc32(content),
        width=width,
        height=height,
    )
    return row, remark


def _require_distinct_keys(records: list[ShardRecord]) -> None:
    """Stops when two samples of a split share a key."""
    seen: dict[tuple[str, str], str] = {}
    for record in records:
        for row in record.rows:
            place = record.split, row.key
            if place in seen:
                raise InputError(
                    f"the key {row.key!r} stands in {seen[place]} and again in {record.shard.name}",
                    expected="each sample once",
                )
            seen[place] = record.shard.name


def _classes_of(folder: Path, mapping: Path | None, records: list[ShardRecord]) -> Classes | None:
    """Finds the classes: from a mapping, an older `classes.json`, or the keys of the samples."""
    mapping = mapping or folder / MAPPING
    if mapping.is_file():
        classes = Classes.from_synset_mapping(mapping)
    elif (folder / CLASSES_NAME).is_file():
        classes = Classes.load(folder)
    else:
        return _classes_in_keys(records)
    largest = max((row.label for record in records for row in record.rows), default=0)
    if largest >= len(classes):
        raise InputError(
            f"the shards have the class index {largest}, beyond the {len(classes)} known classes",
            expected="class indices that are ranks of sorted wnids",
        )
    return classes


def _classes_in_keys(records: list[ShardRecord]) -> Classes | None:
    """Takes wnids from keys like `n01440764_10026`, as ImageNet's training pictures have them.

    Returns:
        The classes, named by their wnids; None when keys and labels do not give each index one.
    """
    wnids: dict[int, set[str]] = defaultdict(set)
    for record in records:
        for row in record.rows:
            if match := _WNID_IN_KEY.fullmatch(row.key):
                wnids[row.label].add(match[1])
    names = [min(wnids[label]) for label in sorted(wnids)]
    is_complete = sorted(wnids) == list(range(len(wnids))) and names == sorted(set(names))
    if not names or not is_complete or any(len(found) > 1 for found in wnids.values()):
        return None
    return Classes(wnids=tuple(names), names=tuple(names))
