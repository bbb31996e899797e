"""Read one shard whole: what each sample is, where its image lies, and which class it names.

Nothing is extracted. Names inside a tar are keys, never paths of ours; a name that leads out of its
folder is refused all the same, because such a tar is not to be trusted.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from imagenet_rn50.classes import WNID, wnids_in
from imagenet_rn50.jpeg.header import JpegError, read_header
from imagenet_rn50.shards.formats import is_image
from imagenet_rn50.shards.images import TURNED
from imagenet_rn50.shards.labels import Claim
from imagenet_rn50.shards.manifest import Shard
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
from imagenet_rn50.shards.writer import Note, Row, ShardRecord
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.storage import FileInfo

UNKNOWN = -1
"""The label of a sample that names its class by wnid alone, until all classes are known."""
_LARGEST_LABEL = 2**31 - 1  # of an int32 column
_LARGEST_IMAGE = 2**31 - 1
_JPEG_MAGIC = b"\xff\xd8"


@dataclass
class ScannedShard:
    """A shard as it was read.

    Args:
        record: Its samples, and which of them cannot be used (`skipped`).
        claims: The class that each of the record's rows names.
        info: What was known of the file before it was read.
    """

    record: ShardRecord
    claims: list[Claim] = field(default_factory=list)
    info: FileInfo = field(default_factory=FileInfo)

    def as_dict(self) -> dict[str, Any]:
        """Return it as `from_dict` takes it; JSON can hold it."""
        number_of = {claim: number for number, claim in enumerate(dict.fromkeys(self.claims))}
        return {
            "record": self.record.as_dict(),
            "claims": list(number_of),
            "claim_of_row": [number_of[claim] for claim in self.claims],
            "info": asdict(self.info),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ScannedShard:
        """Return what `as_dict` described.

        Raises:
            ValueError, KeyError, TypeError, IndexError: When it is something else.
        """
        claims = [Claim(*claim) for claim in content["claims"]]
        return cls(
            ShardRecord.from_dict(content["record"]),
            [claims[number] for number in content["claim_of_row"]],
            FileInfo(**content["info"]),
        )


def scan_shard(
    path: Path,
    *,
    name: str,
    split: str,
    where: str,
    sha256: str | None = None,
    label_key: str | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> ScannedShard:
    """Read one shard.

    Args:
        path: Its file.
        name: Its path in the folder of the shards.
        split: Its split.
        where: The shard as messages name it: its path, or its address.
        sha256: Its hash; None to compute it.
        label_key: The field of the samples' JSON that holds the label; None for the usual ones.
        check_stop: Called before each sample; may raise to stop.

    Raises:
        InputError: When it is damaged or unsafe, or a sample contradicts itself.
    """
    with mapped(path) as buffer:
        digest = sha256 or hashlib.sha256(buffer).hexdigest()
        num_bytes = len(buffer)
        record = ShardRecord(split, Shard(name, 0, num_bytes, digest))
        scanned = ScannedShard(record)
        distinct: dict[Claim, Claim] = {}
        try:
            for sample in samples_in(buffer):
                check_stop()
                _require_safe(sample, where)
                claim = _claim_of(sample, buffer, where, label_key)
                try:
                    row, note = _row_of(sample, buffer, claim, label_key, name)
                except _UnusableError as reason:
                    record.skipped.append(Note(name, sample.key, UNKNOWN, str(reason)))
                else:
                    assert claim is not None
                    record.rows.append(row)
                    scanned.claims.append(distinct.setdefault(claim, claim))
                    record.changed += [] if note is None else [note]
        except TarError as error:
            fix = error.fix if str(path) == where else "make it again and upload it"
            raise InputError(
                f"{where} {error}", expected="a whole, uncompressed tar", fix=fix
            ) from None
    record.shard = Shard(name, len(record.rows), num_bytes, digest)
    return scanned


def _require_safe(sample: TarSample, where: str) -> None:
    """Raise an error if a key leads out of its folder, or cannot be written down."""
    if ".." in PurePosixPath(sample.key).parts or sample.key.startswith("/"):
        raise InputError(
            f"{where} holds the member {sample.key!r}, which leads out of its folder",
            expected="plain names such as n01440764_10026.jpg",
            fix="make the shard anew without it; nothing was extracted",
        )
    if not sample.key.isprintable():
        raise InputError(
            f"{where} holds the member {readable(sample.key)!r}", expected="printable UTF-8 names"
        )


class _UnusableError(Exception):
    """Why a sample cannot be used; the message continues a sentence that begins with it."""


def _row_of(
    sample: TarSample, buffer: Buffer, claim: Claim | None, label_key: str | None, shard: str
) -> tuple[Row, Note | None]:
    """Return a sample's row, and a note if it is no upright JPEG.

    Raises:
        _UnusableError: When it has no label, or not one image that can be read.
    """
    members = f"(members {', '.join(sorted(sample.members)) or 'none'})"
    images = sorted(sample.members.keys() & set(IMAGE_FIELDS))
    if len(images) > 1:
        raise _UnusableError(f"has {len(images)} images {members}")
    image = image_of(sample)
    if image is None:
        raise _UnusableError(f"has no image: .jpg, .jpeg, .png or .webp {members}")
    if claim is None:
        where = "a class index or a wnid in .cls, .json or its key"
        if label_key is not None:
            where = f"a class index or a name in {label_key!r} of .json"
        raise _UnusableError(f"has no label: {where} {members}")
    key, label = sample.key, UNKNOWN if claim.label is None else claim.label
    content = bytes(buffer[image.offset : image.offset + image.size])
    width = height = 0
    note = None
    try:
        header = read_header(content)
        width, height = header.width, header.height
        if header.orientation != 1:
            reason = f"not changed, but orientation {header.orientation}: {TURNED} as it is decoded"
            note = Note(shard, key, label, reason)
    except JpegError as error:
        if content.startswith(_JPEG_MAGIC) or not is_image(content):
            raise _UnusableError(f"has an image that cannot be read: {error}") from None
        note = Note(shard, key, label, f"not changed, but {error}")
    row = Row(
        key=key,
        label=label,
        offset=image.offset,
        length=image.size,
        crc32=zlib.crc32(content),
        width=width,
        height=height,
    )
    return row, note


def _claim_of(sample: TarSample, buffer: Buffer, where: str, label_key: str | None) -> Claim | None:
    """Return the class that a sample names; None if it names none or an invalid one.

    Raises:
        InputError: When it names two.
    """
    found = sample.labels(buffer, label_key)
    if label_key is not None and isinstance(value := found[0][1], int | str):
        # A name stands for itself; an index, for the wnid in the key, if they turn out to agree.
        if isinstance(value, int) or WNID.fullmatch(value):
            found += [("its key", wnid) for wnid in wnids_in(sample.key)]
    index: int | None = None
    wnid: str | None = None
    for place, value in found:
        if value is None or (isinstance(value, int) and not 0 <= value <= _LARGEST_LABEL):
            return None
        known = wnid if isinstance(value, str) else index
        if known not in {None, value}:
            other = next(other for other, v in found if v == known)
            raise InputError(
                f"the sample {sample.key!r} in {where} names two classes",
                expected="one class, wherever a sample names it",
                found=f"{known} in {other}, {value} in {place}",
                fix="make the shard again with the right one; nothing was written",
            )
        if isinstance(value, str):
            wnid = value
        else:
            index = value
    return Claim(index, wnid) if found else None
