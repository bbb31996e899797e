"""Samples in a tar by WebDataset's rule: neighbours that share a name up to the first dot.

The dot is looked for behind the last slash, so a key may have folders, and `a/x.y.jpg` is the field
`y.jpg` of the sample `a/x`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from imagenet_rn50.classes import WNID, wnids_in
from imagenet_rn50.errors import InputError
from imagenet_rn50.parsing import parse_json
from imagenet_rn50.shards.tar_walk import Buffer, Member, TarError, walk

_PICTURE_FIELDS = ("jpg", "jpeg", "png")
_FILE_FIELD = "filename"
_TEXT_FIELDS = ("label", "wnid", "synset", "class_id", "class", _FILE_FIELD)  # of a `.json`
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG")
_MOST_DIGITS = 100  # of a class index; Python refuses to read thousands of them


@dataclass
class TarSample:
    """One sample: its key and its members by field, lower-cased (`jpg`, `cls`, `json`)."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)

    def labels(self, buffer: Buffer) -> list[tuple[str, int | str | None]]:
        """Return all that the sample says about its class.

        Returns:
            Where, and a class index or a wnid; None for a `.cls` that is neither.
        """
        found: list[tuple[str, int | str | None]] = []
        if (member := self.members.get("cls")) is not None:
            text = bytes(buffer[member.offset : member.offset + member.size]).strip()
            found.append((".cls", _index_or_wnid(text.decode("utf-8", "replace"))))
        if (member := self.members.get("json")) is not None:
            found += _labels_in_json(bytes(buffer[member.offset : member.offset + member.size]))
        return found + [("its key", wnid) for wnid in wnids_in(self.key)]


def picture_of(sample: TarSample) -> Member | None:
    """Returns the member that is the sample's picture; None when it has none."""
    found = (sample.members.get(name) for name in _PICTURE_FIELDS)
    return next((member for member in found if member is not None), None)


def samples_in(buffer: Buffer) -> Iterator[TarSample]:
    """Yields the samples of a tar, front to back.

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


def _labels_in_json(content: bytes) -> list[tuple[str, int | str | None]]:
    """Returns `label` if it is an index, and each field that is a wnid or a file name with one."""
    try:
        value = parse_json(content, "a sample's JSON")
    except InputError:
        return []
    if not isinstance(value, dict):
        return []
    found: list[tuple[str, int | str | None]] = []
    label = value.get("label")
    if isinstance(label, int) and not isinstance(label, bool):
        found.append((".json (label)", label))
    texts = {name: text for name in _TEXT_FIELDS if isinstance(text := value.get(name), str)}
    for name, text in texts.items():
        if WNID.fullmatch(text) or name == _FILE_FIELD:
            found += [(f".json ({name})", wnid) for wnid in wnids_in(text)]
    return found
