"""Walks through a tar by its headers, strictly.

Readers that are content with what they find (webdataset, `tar --ignore-zeros`) end silently where
a tar was cut at the edge of a member. This one insists on right checksums and on the end mark.
Nothing is ever extracted: a member is a name and a stretch of bytes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from imagenet_rn50.shards.tar import BLOCK, END, padding

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
    """Gives a file's bytes without reading them into memory."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:  # cannot be mapped
            yield b""
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                yield buffer


def walk(
    buffer: Buffer, begin: int = 0, end: int | None = None, *, skip_links: bool = True
) -> Iterator[Member]:
    """Yields the regular files of a tar, front to back; other members are passed over.

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
            # Over 8 GiB, or with holes: no picture is.
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
    """Yields (type, name, offset, size) of all members, those that only describe others too."""
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
    """Stops where the file is a compressed one, whatever its name."""
    for magic, (name, ending) in _COMPRESSED.items():
        if header.startswith(magic):
            raise TarError(
                f"is compressed with {name}; samples are read by offset, which needs a plain tar",
                fix=f"decompress it: mv FILE FILE.{ending} && {name} -d FILE.{ending}",
            )


def _checked(header: bytes, position: int) -> tuple[bytes, int]:
    """Returns a header's type and size after a look at its checksum."""
    try:
        checksum = _number(header[148:156])
        size = _number(header[124:136])
    except ValueError:
        checksum = size = -1
    if checksum != sum(header) - sum(header[148:156]) + 8 * 32 or size < 0:
        raise TarError(f"has a damaged header at byte {position}")
    return header[156:157], size


def _number(field: bytes) -> int:
    """Reads a number: octal digits, or GNU's base 256 for what is too large for them."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _name(header: bytes) -> str:
    """Returns the name that stands in a header."""
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0]
    if prefix and header[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    return _text(name)


def _text(encoded: bytes) -> str:
    return encoded.decode("utf-8", "surrogateescape")


def _pax_records(content: bytes) -> dict[str, str]:
    """Reads pax records, each `length keyword=value` and a line feed."""
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
    """Checks that nothing but zeros follows, at least two blocks of them."""
    rest = end - position
    if rest < len(END):
        raise TarError(f"ends at byte {end - begin} within its end mark: cut off")
    while position < end:
        chunk = bytes(buffer[position : min(position + (1 << 20), end)])
        if any(chunk):
            raise TarError(f"has data behind its end mark, after byte {position - begin}")
        position += len(chunk)
