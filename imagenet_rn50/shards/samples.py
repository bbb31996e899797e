"""Samples in a tar by WebDataset's rule: neighbours that share a name up to the first dot.

The dot is looked for behind the last slash, so a key may have folders, and `a/x.y.jpg` is the field
`y.jpg` of the sample `a/x`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from imagenet_rn50.errors import InputError
from imagenet_rn50.parsing import parse_json
from imagenet_rn50.shards.tar_walk import Buffer, Member, TarError, walk

_PICTURE_FIELDS = ("jpg", "jpeg", "png")
_MOST_DIGITS = 100  # of a class index; Python refuses to read thousands of them


@dataclass
class TarSample:
    """One sample: its key and its members by field, lower-cased (`jpg`, `cls`, `json`)."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)

    def label(self, buffer: Buffer) -> int | None:
        """Returns the class index, from `.cls` or else from `label` in `.json`; None without."""
        if (member := self.members.get("cls")) is not None:
            text = bytes(buffer[member.offset : member.offset + member.size]).strip()
            return int(text) if text.isdigit() and len(text) <= _MOST_DIGITS else None
        if (member := self.members.get("json")) is not None:
            return _label_in_json(bytes(buffer[member.offset : member.offset + member.size]))
        return None


def picture_of(sample: TarSample) -> Member | None:
    """Returns the member that is the sample's picture; None when it has none."""
    found = (sample.members.get(name) for name in _PICTURE_FIELDS)
    return next((member for member in found if member is not None), None)


def samples_in(buffer: Buffer) -> Iterator[TarSample]:
    """Yields the samples of a tar, front to back.

    Raises:
        TarError: When the tar is damaged, or a sample has the same field twice.
    """
    sample: TarSample | None = None
    for member in walk(buffer):
        folder, slash, name = member.name.rpartition("/")
        stem, dot, suffix = name.partition(".")
        if not dot or not stem:  # not part of a sample, as for webdataset
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


def _label_in_json(content: bytes) -> int | None:
    try:
        value = parse_json(content, "a sample's JSON")
    except InputError:
        return None
    label = value.get("label") if isinstance(value, dict) else None
    return label if isinstance(label, int) and not isinstance(label, bool) else None
