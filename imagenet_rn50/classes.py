"""Classes: wnid <-> index <-> name.

The index of a class is the rank of its WordNet id (wnid) among all wnids in sorted order, as in
every ImageNet-1k model. The names come from Kaggle's `LOC_synset_mapping.txt`; they are saved
with the shards and become a model's `id2label`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_json, read_text, write_json

WNID = re.compile(r"n\d{8}")
FILE_NAME = "classes.json"
TOP_K = 5
"""Number of predictions in top-5; fewer if there are fewer classes."""
_WNID_IN_NAME = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?![0-9A-Za-z])")


def wnids_in(name: str) -> list[str]:
    """Return the distinct wnids in a file name or key, such as `n01440764/n01440764_18`."""
    return list(dict.fromkeys(_WNID_IN_NAME.findall(name)))


def read_synset_mapping(path: Path) -> dict[str, str]:
    """Read Kaggle's mapping, one line per class: `n01440764 tench, Tinca tinca`.

    Args:
        path: `LOC_synset_mapping.txt`.

    Returns:
        The name of each wnid, in the order of the lines.

    Raises:
        InputError: If a line has no wnid or no name, a wnid repeats, or there is no line.
    """
    names: dict[str, str] = {}
    line_of: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        wnid, name = [*line.split(maxsplit=1), ""][:2]
        if not WNID.fullmatch(wnid) or not name:
            raise InputError(
                f"line {number} of {path} does not name a class",
                expected="a wnid and a name, like 'n01440764 tench, Tinca tinca'",
                found=repr(line),
            )
        if wnid in names:
            raise InputError(
                f"line {number} of {path} repeats the wnid {wnid}",
                expected="one line per wnid",
                found=f"{names[wnid]!r} in line {line_of[wnid]}, {name.strip()!r} in line {number}",
                fix="delete the wrong line",
            )
        names[wnid], line_of[wnid] = name.strip(), number
    if not names:
        raise InputError(f"{path} names no class", found="no lines")
    return names


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, in the order of their indices.

    Args:
        wnids: WordNet ids such as `n01440764`, sorted and distinct.
        names: One human-readable name each, from the source.
    """

    wnids: tuple[str, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that position i is the class with index i.

        Raises:
            InputError: If wnids repeat, are not sorted, do not match the names, or are not UTF-8
                (folder names may be anything).
        """
        for text in (*self.wnids, *self.names):
            if text != text.encode("utf-8", "replace").decode("utf-8"):
                raise InputError(
                    f"the class {ascii(text)} is not valid UTF-8",
                    expected="wnids and names of classes in UTF-8",
                    fix="rename the folder of the class",
                )
        if len(self.wnids) != len(self.names):
            raise InputError(f"{len(self.wnids)} wnids do not match {len(self.names)} class names")
        for previous, wnid in zip(self.wnids, self.wnids[1:], strict=False):
            if previous >= wnid:
                problem = "repeats" if previous == wnid else "is out of order"
                raise InputError(f"wnid {wnid} {problem}", expected="sorted, distinct wnids")

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.wnids)

    @cached_property
    def index_of(self) -> dict[str, int]:
        """Class index by wnid."""
        return {wnid: index for index, wnid in enumerate(self.wnids)}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """One distinct name per class: a repeated name (ImageNet has two cranes) gets its wnid."""
        counts = Counter(self.names)
        return tuple(
            name if counts[name] == 1 else f"{name} ({wnid})"
            for wnid, name in zip(self.wnids, self.names, strict=True)
        )

    @classmethod
    def read(cls, path: Path) -> Classes:
        """Read a list of classes; the format is detected by content, not by name.

        Args:
            path: A classes.json or a folder that holds one; Keras' imagenet_class_index.json; or
                Kaggle's LOC_synset_mapping.txt.

        Raises:
            InputError: If there is no such file, or it lists no classes.
        """
        if path.is_dir():
            return cls.load(path)
        if read_text(path).lstrip()[:1] in {"[", "{"}:
            return cls._from_json(path)
        return cls.from_synset_mapping(path)

    @classmethod
    def from_synset_mapping(cls, path: Path) -> Classes:
        """Read Kaggle's mapping, sorted by wnid; see `read_synset_mapping`."""
        names = read_synset_mapping(path)
        wnids = tuple(sorted(names))
        return cls(wnids=wnids, names=tuple(names[wnid] for wnid in wnids))

    def save(self, folder: Path) -> None:
        """Write `classes.json`, a list of {index, wnid, name}, into `folder`."""
        rows = zip(self.wnids, self.names, strict=True)
        content = [{"index": i, "wnid": w, "name": name} for i, (w, name) in enumerate(rows)]
        write_json(folder / FILE_NAME, content)

    @classmethod
    def load(cls, folder: Path) -> Classes:
        """Read the `classes.json` in `folder`.

        Raises:
            InputError: If it is missing or is not a list of classes in the order of their index.
        """
        return cls._from_json(folder / FILE_NAME)

    @classmethod
    def _from_json(cls, path: Path) -> Classes:
        """Read our list of classes, or Keras' {"0": ["n01440764", "tench"], ...}."""
        content: Any = read_json(path)
        try:
            if isinstance(content, dict):
                content = [
                    {"index": int(index), "wnid": wnid, "name": name}
                    for index, (wnid, name) in content.items()
                ]
                content.sort(key=lambda row: row["index"])
            indices = [row["index"] for row in content]
            wnids = tuple(str(row["wnid"]) for row in content)
            names = tuple(str(row["name"]) for row in content)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} does not list classes",
                expected="[{'index': 0, 'wnid': 'n01440764', 'name': 'tench, Tinca tinca'}, ...]",
                found=f"an entry without {error}"
                if isinstance(error, KeyError)
                else "entries without a wnid and a name",
            ) from None
        if indices != list(range(len(indices))):
            raise InputError(f"{path} lists class indices out of order", expected="0, 1, 2, ...")
        try:
            return cls(wnids=wnids, names=names)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
