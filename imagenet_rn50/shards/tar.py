"""Tar files of reproducible bytes: nothing of the machine, the user or the hour is in them.

`tarfile` builds a header in some 20 microseconds and pads to 10 KiB. Here a plain name takes a
prepared header and one checksum; only names that need it (not ASCII, or over 100 bytes) get a pax
header, which is built by `tarfile`.
"""

from __future__ import annotations

import hashlib
import tarfile
from typing import BinaryIO

BLOCK = 512  # bytes; headers and contents begin at multiples of it
END = bytes(2 * BLOCK)
_NAME_BYTES = 100


def padding(size: int) -> int:
    """Returns how many zero bytes follow a member of `size` bytes."""
    return -size % BLOCK


def _template() -> bytes:
    """Returns the header of a file of no name and no size, its checksum blanked."""
    header = bytearray(tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT))
    header[148:156] = b" " * 8
    return bytes(header)


_TEMPLATE = _template()
_TEMPLATE_SUM = sum(_TEMPLATE) - sum(_TEMPLATE[124:136])


def header_of(name: str, size: int) -> bytes:
    """Returns the tar header of a regular file: mode 0644, owner 0, time 0.

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
    """Appends members to a file and hashes what goes by.

    Args:
        file: Where the tar is written, open for binary writing at its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def add(self, name: str, content: bytes) -> int:
        """Appends one member.

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
        """Ends the archive; the file itself stays open.

        Returns:
            The SHA-256 of all that was written, as 64 hexadecimal digits.
        """
        self._write(END)
        return self._hash.hexdigest()

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self.num_bytes += len(content)
