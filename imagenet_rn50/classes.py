"""Classes: wnid <-> index <-> name.

The index of a class is the rank of its WordNet id (wnid) among all wnids in sorted order, as in
every ImageNet-1k model. The names come from Kaggle's `LOC_synset_mapping.txt`; they are packed
beside the shards and end in a model's `id2label`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from imagenet_rn50.errors import InputError
from imagenet_rn50.files import read_json, read_text, write_json

WNID = re.compile(r"n\d{8}")
FILE_NAME = "classes.json"


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, in the order of their indices.

    Args:
        wnids: WordNet ids such as `n01440764`, sorted and distinct.
        names: One human-readable name each, as the source gives it.
    """

    wnids: tuple[str, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks that position i is the class with index i.

        Raises:
            InputError: When wnids repeat, are not sorted, do not match the names, or are not UTF-8,
                as a folder's name need not be.
        """
        for text in (*self.wnids, *self.names):
            if text != text.encode("utf-8", "replace").decode("utf-8"):
                raise InputError(
                    f"the class {ascii(text)} cannot be written down",
                    expected="wnids and names of classes in UTF-8",
                    fix="give the folder of the class another name",
                )
        if len(self.wnids) != len(self.names):
            raise InputError(f"{len(self.wnids)} wnids cannot carry {len(self.names)} class names")
        for previous, wnid in zip(self.wnids, self.wnids[1:], strict=False):
            if previous >= wnid:
                problem = "repeats" if previous == wnid else "is out of order"
                raise InputError(f"wnid {wnid} {problem}", expected="sorted, distinct wnids")

    def __len__(self) -> int:
        """Returns the number of classes."""
        return len(self.wnids)

    @cached_property
    def index_of(self) -> dict[str, int]:
        """Class index by wnid."""
        return {wnid: index for index, wnid in enumerate(self.wnids)}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """One distinct name a class: a repeated name (ImageNet has two cranes) gets its wnid."""
        counts = Counter(self.names)
        return tuple(
            name if counts[name] == 1 else f"{name} ({wnid})"
            for wnid, name in zip(self.wnids, self.names, strict=True)
        )

    @classmethod
    def from_synset_mapping(cls, path: Path) -> Classes:
        """Reads Kaggle's mapping: a line a class, `n01440764 tench, Tinca tinca`.

        Args:
            path: `LOC_synset_mapping.txt`.

        Returns:
            The classes, sorted by wnid.

        Raises:
            InputError: When a line has no wnid or no name, or a wnid repeats.
        """
        names: dict[str, str] = {}
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            wnid, _, name = line.strip().partition(" ")
            if not wnid:
                continue
            if not WNID.fullmatch(wnid) or not name or wnid in names:
                raise InputError(
                    f"line {number} of {path} does not name a new class",
                    expected="a wnid of its own and a name, like 'n01440764 tench, Tinca tinca'",
                    found=repr(line),
                )
            names[wnid] = name.strip()
        wnids = tuple(sorted(names))
        return cls(wnids=wnids, names=tuple(names[wnid] for wnid in wnids))

    def save(self, folder: Path) -> None:
        """Writes `classes.json`, a list of {index, wnid, name}, into `folder`."""
        rows = zip(self.wnids, self.names, strict=True)
        content = [{"index": i, "wnid": w, "name": name} for i, (w, name) in enumerate(rows)]
        write_json(folder / FILE_NAME, content)

    @classmethod
    def load(cls, folder: Path) -> Classes:
        """Reads the `classes.json` in `folder`.

        Raises:
            InputError: When it is missing or is not a list of classes in the order of their index.
        """
        path = folder / FILE_NAME
        content = read_json(path)
        try:
            indices = [row["index"] for row in content]
            wnids = tuple(str(row["wnid"]) for row in content)
            names = tuple(str(row["name"]) for row in content)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path} does not list classes",
                expected="[{'index': 0, 'wnid': 'n01440764', 'name': 'tench, Tinca tinca'}, ...]",
                found=f"an entry without {error}",
            ) from None
        if indices != list(range(len(indices))):
            raise InputError(f"{path} lists class indices out of order", expected="0, 1, 2, ...")
        return cls(wnids=wnids, names=names)
