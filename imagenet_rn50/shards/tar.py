"""Tar files of reproducible bytes: nothing of the machine, the user or the hour is in them.

`tarfile` builds a header in some 20 microseconds and pads to 10 KiB. Here a plain name takes a
prepared header and one checksum; only names that need it (not ASCII, or over 100 bytes) get a pax
header, which is built by `tarfile`.

Walks through a tar by its headers, strictly.

Readers that are content with what they find (webdataset, `tar --ignore-zeros`) end silently where
a tar was cut at the edge of a member. This one insists on right checksums and on the end mark.
Nothing is ever extracted: a member is a name and a stretch of bytes.

Samples in a tar by WebDataset's rule: neighbours that share a name up to the first dot.

The dot is looked for behind the last slash, so a key may have folders, and `a/x.y.jpg` is the field
`y.jpg` of the sample `a/x`.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from imagenet_rn50.classes import WNID, wnids_in

BLOCK = 512  # bytes; headers and contents begin at multiples of it
END = bytes(2 * BLOCK)
_NAME_BYTES = 100


def padding(size: int) -> int:
    """Return how many zero bytes follow a member of `size` bytes."""
    return -size % BLOCK


def _template() -> bytes:
    """Return the header of a file of no name and no size, its checksum blanked."""
    header = bytearray(tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT))
    header[148:156] = b" " * 8
    return bytes(header)


_TEMPLATE = _template()
_TEMPLATE_SUM = sum(_TEMPLATE) - sum(_TEMPLATE[124:136])


def header_of(name: str, size: int) -> bytes:
    """Return the tar header of a regular file: mode 0644, owner 0, time 0.

    Args:
        name: The member's name.
        size: Its length in bytes.

    Returns:
        One block, or three and more when the name needs a pax header.
    """
    encoded = name.encode("utf-8")
    if not name.isascii() or len(encoded) > _NAME_BYTES or size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.PAX_FORMAT)
    octal = b"%011o\0" % size
    checksum = _TEMPLATE_SUM + sum(encoded) + sum(octal)
    return b"".join((
        encoded,
        _TEMPLATE[len(encoded) : 124],
        octal,
        _TEMPLATE[136:148],
        b"%06o\0 " % checksum,
        _TEMPLATE[156:],
    ))  # fmt: skip


class TarWriter:
    """Append members to a file and hashes what goes by.

    Args:
        file: Where the tar is written, open for binary writing at its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def add(self, name: str, content: bytes) -> int:
        """Append one member.

        Returns:
            The offset of its content in the tar, in bytes.
        """
        header = header_of(name, len(content))
        self._write(header)
        offset = self.num_bytes
        self._write(content)
        self._write(bytes(padding(len(content))))
        return offset

    def close(self) -> str:
        """Write the end mark; the file stays open.

        Returns:
            The SHA-256 of all that was written, as 64 hexadecimal digits.
        """
        self._write(END)
        return self._hash.hexdigest()

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self.num_bytes += len(content)


Buffer = bytes | mmap.mmap | memoryview
_FILE_TYPES = frozenset({b"0", b"\0", b"7"})
_LINK_TYPES = frozenset({b"1", b"2"})
_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_SPARSE = b"x", b"g", b"L", b"S"


# What compressed files begin with. Samples are read by their offset, which needs a plain tar.
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gz"),
    b"BZh": ("bzip2", "bz2"),
    b"\xfd7zXZ": ("xz", "xz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zst"),
}


class TarError(ValueError):
    """The bytes are no whole tar; the message says from where on.

    Args:
        problem: Continues a sentence that begins with the file.
        fix: What to do about it.
    """

    def __init__(self, problem: str, fix: str = "download it again") -> None:
        super().__init__(problem)
        self.fix = fix


class Member(NamedTuple):
    """One regular file in a tar.

    Args:
        name: Its path as the tar has it; not to be trusted as a path of ours.
        offset: Where its content begins, in bytes.
        size: How long its content is, in bytes.
    """

    name: str
    offset: int
    size: int


@contextmanager
def mapped(path: Path) -> Iterator[Buffer]:
    """Map a file's bytes without reading them into memory."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:  # cannot be mapped
            yield b""
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                yield buffer


def walk(
    buffer: Buffer, begin: int = 0, end: int | None = None, *, skip_links: bool = True
) -> Iterator[Member]:
    """Yield the regular files of a tar, front to back; other members are passed over.

    Args:
        buffer: What holds the tar.
        begin: Where the tar begins in it.
        end: Where it ends; None for the end of `buffer`.
        skip_links: Whether links are passed over too; else they are refused.

    Raises:
        TarError: When a header is damaged, a member or the end mark is cut off; when the tar is
            compressed.
    """
    pax: dict[str, str] = {}
    for kind, name, offset, size in _members(buffer, begin, len(buffer) if end is None else end):
        if kind == _PAX:
            pax |= _pax_records(bytes(buffer[offset : offset + size]))
        elif kind == _GNU_NAME:
            pax["path"] = _text(bytes(buffer[offset : offset + size]).rstrip(b"\0"))
        elif kind == _GNU_SPARSE or "size" in pax:
            # Over 8 GiB, or with holes: no image is.
            raise TarError(f"holds a member that is too large or sparse at byte {offset - begin}")
        elif kind in _LINK_TYPES and not skip_links:
            raise TarError(
                f"holds the link {pax.get('path', name)!r}, which has no content of its own",
                fix="make it again without links: tar --dereference --hard-dereference",
            )
        elif kind != _PAX_GLOBAL:
            if kind in _FILE_TYPES:
                yield Member(pax.get("path", name), offset, size)
            pax = {}


def _members(buffer: Buffer, begin: int, end: int) -> Iterator[tuple[bytes, str, int, int]]:
    """Yield (type, name, offset, size) of all members, those that only describe others too."""
    position = begin
    while True:
        header = bytes(buffer[position : min(position + BLOCK, end)])
        if position == begin:
            _require_uncompressed(header)
        if len(header) < BLOCK:
            raise TarError(f"ends at byte {end - begin} without an end mark: cut off")
        if not any(header):
            _require_end(buffer, position, begin, end)
            return
        kind, size = _checked(header, position - begin)
        content = position + BLOCK
        if content + size > end:
            raise TarError(
                f"ends within the member {_name(header)!r}, which begins at byte "
                f"{position - begin}: cut off"
            )
        yield kind, _name(header), content, size
        position = content + size + padding(size)


def _require_uncompressed(header: bytes) -> None:
    """Raise an error if the file is a compressed one, whatever its name."""
    for magic, (name, ending) in _COMPRESSED.items():
        if header.startswith(magic):
            raise TarError(
                f"is compressed with {name}; samples are read by offset, which needs a plain tar",
                fix=f"decompress it: mv FILE FILE.{ending} && {name} -d FILE.{ending}",
            )


def _checked(header: bytes, position: int) -> tuple[bytes, int]:
    """Return a header's type and size after a look at its checksum."""
    try:
        checksum = _number(header[148:156])
        size = _number(header[124:136])
    except ValueError:
        checksum = size = -1
    if checksum != sum(header) - sum(header[148:156]) + 8 * 32 or size < 0:
        raise TarError(f"has a damaged header at byte {position}")
    return header[156:157], size


def _number(field: bytes) -> int:
    """Read a number: octal digits, or GNU's base 256 for what is too large for them."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _name(header: bytes) -> str:
    """Return the name in a header."""
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0]
    if prefix and header[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    return _text(name)


def _text(encoded: bytes) -> str:
    return encoded.decode("utf-8", "surrogateescape")


def _pax_records(content: bytes) -> dict[str, str]:
    """Read pax records, each `length keyword=value` and a line feed."""
    records = {}
    while content.strip(b"\0"):
        digits = content.partition(b" ")[0]
        length = int(digits) if digits.isdigit() and len(digits) < 20 else 0
        keyword, equals, value = content[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or not len(digits) < length <= len(content):
            raise TarError("has a damaged pax header")
        records[_text(keyword)] = _text(value)
        content = content[length:]
    return records


def _require_end(buffer: Buffer, position: int, begin: int, end: int) -> None:
    """Check that nothing but zeros follows, at least two blocks of them."""
    rest = end - position
    if rest < len(END):
        raise TarError(f"ends at byte {end - begin} within its end mark: cut off")
    while position < end:
        chunk = bytes(buffer[position : min(position + (1 << 20), end)])
        if any(chunk):
            raise TarError(f"has data behind its end mark, after byte {position - begin}")
        position += len(chunk)


IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp")
_FILE_FIELD = "filename"
_TEXT_FIELDS = ("label", "wnid", "synset", "class_id", "class", _FILE_FIELD)  # of a `.json`
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG")
_MOST_DIGITS = 100  # of a class index; Python refuses to read thousands of them


@dataclass
class TarSample:
    """One sample: its key and its members by field, lower-cased (`jpg`, `cls`, `json`)."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)

    def labels(
        self, buffer: Buffer, label_key: str | None = None
    ) -> list[tuple[str, int | str | None]]:
        """Return all that the sample says about its class.

        Args:
            buffer: The tar.
            label_key: The field of `.json` that holds the label, instead of all other labels; None
                for `.cls`, and the usual fields of `.json`.

        Returns:
            Where, and a class index, or a wnid or name; None for a `.cls` that is neither, and for
            a field `label_key` that is missing or is neither.
        """
        if label_key is not None:
            return [(f".json ({label_key})", self._field(buffer, label_key))]
        found: list[tuple[str, int | str | None]] = []
        if (member := self.members.get("cls")) is not None:
            text = bytes(buffer[member.offset : member.offset + member.size]).strip()
            found.append((".cls", _index_or_wnid(text.decode("utf-8", "replace"))))
        if (member := self.members.get("json")) is not None:
            found += _labels_in_json(bytes(buffer[member.offset : member.offset + member.size]))
        return found + [("its key", wnid) for wnid in wnids_in(self.key)]

    def _field(self, buffer: Buffer, label_key: str) -> int | str | None:
        """Return the class index or the name in a field of `.json`; None if it is neither."""
        if (member := self.members.get("json")) is None:
            return None
        value = _json_object(bytes(buffer[member.offset : member.offset + member.size]))
        label = value.get(label_key)
        if isinstance(label, int) and not isinstance(label, bool):
            return label
        is_name = isinstance(label, str) and label.strip() and not label.strip().isdigit()
        return str(label).strip() if is_name else None


def image_of(sample: TarSample) -> Member | None:
    """Return the member that is the sample's image; None when it has none."""
    found = (sample.members.get(name) for name in IMAGE_FIELDS)
    return next((member for member in found if member is not None), None)


def samples_in(buffer: Buffer) -> Iterator[TarSample]:
    """Yield the samples of a tar, front to back.

    Raises:
        TarError: When the tar is damaged, a sample has the same field twice, or an image is part of
            no sample, or only linked to.
    """
    sample: TarSample | None = None
    for member in walk(buffer, skip_links=False):
        folder, slash, name = member.name.rpartition("/")
        stem, dot, suffix = name.partition(".")
        if not dot or not stem:  # not part of a sample, as for webdataset
            if bytes(buffer[member.offset : member.offset + 4]).startswith(_IMAGE_MAGIC):
                raise TarError(
                    f"holds the image {member.name!r}, which readers skip: its name has no ending",
                    fix="make the shard again with names such as n01440764_18.jpg",
                )
            continue
        key = f"{folder}{slash}{stem}"
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = TarSample(key)
        if suffix.lower() in sample.members:
            raise TarError(f"holds the member {member.name!r} twice in a row")
        sample.members[suffix.lower()] = member
    if sample is not None:
        yield sample


def _index_or_wnid(text: str) -> int | str | None:
    if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS:
        return int(text)
    return text if WNID.fullmatch(text) else None


def _json_object(content: bytes) -> dict[str, Any]:
    """Read a sample's JSON; empty where it is something else, or names a field twice.

    NaN is read, which img2dataset writes for numbers that are missing.
    """
    try:
        value = json.loads(content, object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field is named twice")
    return fields


def _labels_in_json(content: bytes) -> list[tuple[str, int | str | None]]:
    """Return `label` if it is an index, and each field that is a wnid or a file name with one."""
    value = _json_object(content)
    found: list[tuple[str, int | str | None]] = []
    label = value.get("label")
    if isinstance(label, int) and not isinstance(label, bool):
        found.append((".json (label)", label))
    texts = {name: text for name in _TEXT_FIELDS if isinstance(text := value.get(name), str)}
    for name, text in texts.items():
        if WNID.fullmatch(text) or name == _FILE_FIELD:
            found += [(f".json ({name})", wnid) for wnid in wnids_in(text)]
    return found
