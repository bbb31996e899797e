"""Make a manifest for WebDataset shards that others have made, by reading them once.

Nothing is extracted and no shard is touched. Names inside a tar are keys, never paths of ours; a
name that leads out of its folder is refused all the same, because such a tar is not to be trusted.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from imagenet_rn50.classes import FILE_NAME as CLASSES_NAME
from imagenet_rn50.jpeg.header import JpegError, read_header
from imagenet_rn50.shards import manifest as manifests
from imagenet_rn50.shards.imagenet1k import dataset_name
from imagenet_rn50.shards.images import TURNED
from imagenet_rn50.shards.labels import MAPPING, Claim, classes_of, log_missing
from imagenet_rn50.shards.manifest import INFO_NAME, TRAIN, VALIDATION, Manifest, Shard, timm_info
from imagenet_rn50.shards.pack import write_manifest
from imagenet_rn50.shards.sources.base import readable
from imagenet_rn50.shards.tar import (
    IMAGE_FIELDS,
    Buffer,
    TarError,
    TarSample,
    image_of,
    mapped,
    samples_in,
)
from imagenet_rn50.shards.writer import FOLDER as STATE_FOLDER
from imagenet_rn50.shards.writer import Note, Row, ShardRecord
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_json
from imagenet_rn50.utils.logging import logger, progress_bar

_SHARD_NAME = re.compile(
    r"(?:(?P<dataset>.+?)[-_])?(?P<split>train|validation|val)[-_](?P<number>\d+)"
    r"(?:-of-(?P<total>\d+))?\.tar"
)
# Tars of other names, compressed ones, and downloads under way.
_LIKE_TAR = re.compile(
    r".+\.(?:tar|tgz|tbz2?|txz|tzst|tar\.(?:gz|bz2|xz|zst|lz4)|tar\.(?:.+\.)?"
    r"(?:part|partial|tmp|download|crdownload|incomplete|aria2))",
    re.IGNORECASE,
)
_LARGEST_LABEL = 2**31 - 1  # of an int32 column
_UNKNOWN = -1
_WITHOUT_CLASSES = (
    f"The classes are not known: {CLASSES_NAME} is not written, and training will refuse these "
    f"shards.\nIndex them again with a list of their classes, such as {MAPPING} or another "
    f"{CLASSES_NAME}: --mapping FILE --force"
)
_UNREADABLE = (
    "{number} images are no JPEGs, which training cannot read; "
    "they are listed in {folder}/audit.md.\n"
    "Train with --on-corrupt substitute to do without them, or unpack the shards and pack again."
)


class FoundShard(NamedTuple):
    """A tar whose name says what it is; `total` is 0 where the name has no `-of-00004`."""

    split: str
    number: int
    dataset: str
    total: int
    path: Path


@dataclass
class _Read:
    """A shard as it was read, and the class that each of its samples gives."""

    record: ShardRecord
    claims: list[Claim] = field(default_factory=list)


def index(
    folder: Path,
    *,
    dataset: str | None = None,
    mapping: Path | None = None,
    force: bool = False,
    num_threads: int = 1,
) -> Manifest:
    """Read the shards in `folder` and writes a manifest beside them.

    Args:
        folder: Holds `*train-0000.tar`, `*validation-00.tar` (or `-0000`, or `val`) and so on.
        dataset: The data set's name; None to take it from the shards' names, unless that is
            ImageNet-1k's and the data is not.
        mapping: A list of classes, as `Classes.read` takes it, for the classes' names; None to look
            for `LOC_synset_mapping.txt` or `classes.json` in `folder`, and else to name the classes
            by their wnids.
        force: Whether to overwrite an intact manifest.
        num_threads: How many shards are read at a time.

    Returns:
        The manifest that was written.

    Raises:
        InputError: When there are no shards, or one is missing, damaged, unsafe or without labels;
            or two sources of labels contradict each other; or there is no such mapping.
    """
    if mapping is not None and not mapping.is_file():
        raise InputError(
            f"--mapping {mapping} is not a file",
            found="a folder" if mapping.is_dir() else "nothing of that name",
            expected=f"Kaggle's {MAPPING}, or one like it",
        )
    shards = find_shards(folder)
    replaced = _manifest_of(folder)
    if replaced is not None and not force:
        raise InputError(
            f"{folder} holds a manifest already",
            expected="shards without one",
            fix=f"compare the shards with it (python shard_imagenet.py verify --shards {folder}), "
            "or write it anew from what they hold now: --force",
        )
    shards_read: list[_Read] = []
    with (
        ThreadPoolExecutor(num_threads) as pool,
        progress_bar(total=len(shards), description="indexing", unit="shard") as bar,
    ):
        for shard in pool.map(_read_shard, shards):
            shards_read.append(shard)
            bar.update()
    records = [shard.record for shard in shards_read]
    _require_distinct_keys(records)
    _require_same_info(folder, records, replaced)
    seen = _first_claims(shards_read)
    classes = classes_of(folder, mapping, seen)
    index_of = {wnid: label for each in seen.values() for label, wnid in each if label is not None}
    index_of.update({} if classes is None else classes.index_of)
    for shard in shards_read:
        _fill_labels(shard, index_of)
    notes = [note for record in records for note in record.changed]
    if unreadable := sum(TURNED not in note.reason for note in notes):
        logger.info(_UNREADABLE.format(number=unreadable, folder=folder))
    if classes is None:
        logger.info(_WITHOUT_CLASSES)
    else:
        labels_of: dict[str, set[int]] = {}
        for record in records:
            labels_of.setdefault(record.split, set()).update(row.label for row in record.rows)
        log_missing(classes, labels_of)
    num_images: Counter[str] = Counter()
    for record in records:
        num_images[record.split] += len(record.rows)
    return write_manifest(
        records,
        folder,
        dataset=dataset_name(dataset, shards[0].dataset, classes, num_images),
        options={"indexed": True},
        classes=classes,
    )


def find_shards(folder: Path) -> list[FoundShard]:
    """Find the shards by their names, training first, by number.

    Raises:
        InputError: When there are none; other tars lie among them; they are of two data sets; or
            one is missing, or comes in two spellings.
    """
    found, others = [], []
    for path in sorted(folder.glob("[!.]*")):
        if (match := _SHARD_NAME.fullmatch(path.name)) and path.is_file():
            split = TRAIN if match["split"] == TRAIN else VALIDATION
            dataset, total = match["dataset"] or folder.name, int(match["total"] or 0)
            found.append(FoundShard(split, int(match["number"]), dataset, total, path))
        elif _LIKE_TAR.fullmatch(path.name):
            others.append(path.name)
    if not found or others:
        names = ", ".join(map(readable, others[:3])) + " ..." * (len(others) > 3)
        raise InputError(
            f"{folder} holds {'other tars beside its' if found else 'no'} shards",
            expected="names like imagenet1k-train-0000.tar and imagenet1k-validation-00.tar",
            found=names or "no tar files",
            fix="decompress them, complete their download, rename them, or move them elsewhere"
            if others
            else None,
        )
    if (folder / STATE_FOLDER).is_dir() and not (folder / manifests.FILE_NAME).is_file():
        raise InputError(
            f"{folder} holds a packing that is not finished",
            expected="all shards of a data set",
            fix=f"run the same pack command again, or delete {folder / STATE_FOLDER} to index "
            "only the shards that are there",
        )
    found.sort()
    _require_complete(found)
    return found


def _require_complete(found: list[FoundShard]) -> None:
    """Raise an error if shards of a numbered set are missing, or others are among them."""
    first = found[0]
    for shard in found:
        if shard.dataset != first.dataset:
            raise InputError(
                f"{first.path.name} and {shard.path.name} are named as two data sets",
                expected=f"shards of {first.dataset} alone",
                fix="move one of the two sets elsewhere, or rename its shards",
            )
    for one, other in pairwise(found):
        if one[:2] == other[:2]:
            raise InputError(
                f"{one.path.name} and {other.path.name} are the same shard in two spellings",
                expected=f"number {one.number} of {one.split} once",
                fix="move one of the two sets elsewhere",
            )
    for split in dict.fromkeys(shard.split for shard in found):
        numbers = [shard.number for shard in found if shard.split == split]
        totals = sorted({shard.total for shard in found if shard.split == split})
        if len(totals) > 1:
            raise InputError(
                f"the {split} shards are numbered in two ways",
                expected="the same -of-NNNNN in all names, or none",
                found=", ".join(f"-of-{total:05d}" if total else "none" for total in totals),
            )
        last = max(numbers[-1], totals[0] - 1)
        if missing := sorted(set(range(last + 1)) - set(numbers)):
            raise InputError(
                f"{len(missing)} of {last + 1} {split} shards are missing",
                expected=f"numbers 0 to {last}",
                found=f"{len(numbers)} shards, without {', '.join(map(str, missing[:5]))}"
                + " ..." * (len(missing) > 5),
                fix="download them; to index a part on purpose, number its shards from 0",
            )


def _manifest_of(folder: Path) -> Manifest | None:
    """Return the manifest in `folder`; None without one, or where it is damaged."""
    if not (folder / manifests.FILE_NAME).is_file():
        return None
    try:
        return Manifest.load(folder)
    except InputError:
        return None


def _read_shard(found: FoundShard) -> _Read:
    """Read one shard whole."""
    path = found.path
    with mapped(path) as buffer:
        sha256 = hashlib.sha256(buffer).hexdigest()
        record = ShardRecord(found.split, Shard(path.name, 0, len(buffer), sha256))
        shard = _Read(record)
        distinct: dict[Claim, Claim] = {}
        try:
            for sample in samples_in(buffer):
                row, claim, note = _row_of(buffer, sample, path)
                record.rows.append(row)
                shard.claims.append(distinct.setdefault(claim, claim))
                record.changed += [] if note is None else [note]
        except TarError as error:
            raise InputError(
                f"{path} {error}", expected="a whole, uncompressed tar", fix=error.fix
            ) from None
    record.shard = Shard(path.name, len(record.rows), record.shard.num_bytes, sha256)
    return shard


def _row_of(buffer: Buffer, sample: TarSample, path: Path) -> tuple[Row, Claim, Note | None]:
    """Return a sample's row, its claim, and a note if it is no upright JPEG.

    A label that is given as a wnid alone is filled in when all classes are known.
    """
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
    image, claim = image_of(sample), _claim_of(sample, buffer, path)
    if image is None or claim is None:
        missing = "image (.jpg, .jpeg, .png)" if image is None else "label (.cls, or in .json)"
        raise InputError(
            f"the sample {sample.key!r} in {path} has no {missing}",
            expected="an image, and a class index, 0 or more, or a wnid, for each sample",
            found=f"members {', '.join(sorted(sample.members)) or 'none'}",
        )
    images = sorted(sample.members.keys() & set(IMAGE_FIELDS))
    if len(images) > 1:
        raise InputError(
            f"the sample {sample.key!r} in {path} has {len(images)} images",
            expected="one image per sample",
            found=f"members {', '.join(images)}",
            fix="write the shard again with one of them",
        )
    label = _UNKNOWN if claim.label is None else claim.label
    content = bytes(buffer[image.offset : image.offset + image.size])
    width = height = 0
    note = None
    try:
        header = read_header(content)
        width, height = header.width, header.height
        if header.orientation != 1:
            reason = f"not changed, but orientation {header.orientation}: {TURNED} as it is decoded"
            note = Note(path.name, sample.key, label, reason)
    except JpegError as error:
        note = Note(path.name, sample.key, label, f"not changed, but {error}")
    row = Row(
        key=sample.key,
        label=label,
        offset=image.offset,
        length=image.size,
        crc32=zlib.crc32(content),
        width=width,
        height=height,
    )
    return row, claim, note


def _claim_of(sample: TarSample, buffer: Buffer, path: Path) -> Claim | None:
    """Return the class that a sample names; None if it names none or an invalid one.

    Raises:
        InputError: When it names two.
    """
    found = sample.labels(buffer)
    index: int | None = None
    wnid: str | None = None
    for where, value in found:
        if value is None or (isinstance(value, int) and not 0 <= value <= _LARGEST_LABEL):
            return None
        known = wnid if isinstance(value, str) else index
        if known not in {None, value}:
            other = next(other for other, v in found if v == known)
            raise InputError(
                f"the sample {sample.key!r} in {path} names two classes",
                expected="one class, wherever a sample names it",
                found=f"{known} in {other}, {value} in {where}",
                fix="make the shard again with the right one; nothing was written",
            )
        if isinstance(value, str):
            wnid = value
        else:
            index = value
    return Claim(index, wnid) if found else None


def _first_claims(shards: list[_Read]) -> dict[str, dict[Claim, str]]:
    """Return the distinct claims of each split, and the first sample that makes each."""
    seen: dict[str, dict[Claim, str]] = {}
    for shard in shards:
        of_split = seen.setdefault(shard.record.split, {})
        for claim, row in zip(shard.claims, shard.record.rows, strict=True):
            if claim not in of_split:
                of_split[claim] = f"the sample {row.key!r} in {shard.record.shard.name}"
    return seen


def _fill_labels(shard: _Read, index_of: Mapping[str | None, int]) -> None:
    """Fill in the class index of samples that give only a wnid."""
    record = shard.record
    record.rows = [
        row._replace(label=index_of[claim.wnid]) if claim.label is None else row
        for row, claim in zip(record.rows, shard.claims, strict=True)
    ]
    label_of = {row.key: row.label for row in record.rows}
    record.changed = [note._replace(label=label_of[note.key]) for note in record.changed]


def _require_distinct_keys(records: list[ShardRecord]) -> None:
    """Raise an error if two samples of a split share a key."""
    seen: dict[tuple[str, str], str] = {}
    for record in records:
        for row in record.rows:
            place = record.split, row.key
            if place in seen:
                raise InputError(
                    f"the key {row.key!r} is in {seen[place]} and again in {record.shard.name}",
                    expected="each sample once",
                )
            seen[place] = record.shard.name


def _require_same_info(
    folder: Path, records: Sequence[ShardRecord], replaced: Manifest | None
) -> None:
    """Raise an error if the `_info.json` in `folder` contradicts the shards that lie there.

    Args:
        folder: Where the shards stand; it need not hold that file.
        records: What they hold.
        replaced: A manifest that is to be replaced. Where the file was written with it, shards may
            have been added or changed since, but none may be missing.

    Raises:
        InputError: When a shard is missing, not listed, or has another number of samples; or when
            the labels are those of a JSON field.
    """
    path = folder / INFO_NAME
    if not path.is_file():
        return
    fix = f"download the shards again, or move {path} elsewhere if it is not theirs"
    content = read_json(path)
    is_ours = replaced is not None and content == timm_info(replaced)
    try:
        listed: dict[str, int] = {}
        for name, split in content["splits"].items():
            lengths = dict(zip(split["filenames"], split["shard_lengths"], strict=True))
            listed |= lengths
            if split["num_samples"] != sum(lengths.values()):
                raise InputError(
                    f"{path} contradicts itself",
                    expected=f"{sum(lengths.values())} samples, as its shard_lengths add up to",
                    found=f"num_samples {split['num_samples']} of {name}",
                    fix=fix,
                )
            if split.get("alt_label"):
                raise InputError(
                    f"{path} takes the labels of {name} from the JSON field {split['alt_label']!r}",
                    expected="labels in .cls, or in the JSON field 'label'",
                    fix="make the shards again with these labels in .cls",
                )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} cannot be read",
            expected="splits with filenames, shard_lengths and num_samples, as timm writes it",
            found=f"an entry without {error}" if isinstance(error, KeyError) else "something else",
            fix=f"move {path} elsewhere if it is not of these shards",
        ) from None
    counted = {record.shard.name: record.shard.num_samples for record in records}
    if missing := sorted(listed.keys() - counted.keys()):
        raise InputError(
            f"{path} lists {len(missing)} shards that are not there, such as {missing[0]}",
            expected=f"{len(listed)} shards",
            found=f"{len(counted)} shards",
            fix=f"download them, or move {path} elsewhere to index only what is there",
        )
    for name, count in counted.items():
        if not is_ours and listed.get(name) != count:
            raise InputError(
                f"{name} is not as {path} describes it",
                expected=f"{listed[name]} samples" if name in listed else "only shards it lists",
                found=f"{count} samples",
                fix=fix,
            )
