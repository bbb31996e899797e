"""Addresses as they may be shown: a location may carry a token, and what is printed is kept."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.*", re.DOTALL)


def public_address(location: str) -> str:
    """Returns a location without what may be secret: user, password, query and fragment."""
    parts = urlsplit(location)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def public_word(word: str) -> str:
    """Returns a word of a command line, the address in it as it may be shown.

    Args:
        word: `--shards`, `s3://bucket/shards`, `--shards=https://host/shards?signature`, ...
    """
    return _ADDRESS.sub(lambda found: public_address(found[0]), word)
