"""What every source hands over: a list of images a split, and the classes.

An image is named by where its bytes are, so that packing reads them in place: a whole file, or a
stretch of a tar, or a row of a parquet file. What cannot be read in place by several processes,
because it is remote or compressed in groups, comes with an `ImageReader`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from imagenet_rn50.classes import WNID, Classes, wnids_in
from imagenet_rn50.utils.errors import InputError


class SourceImage(NamedTuple):
    """One labelled image of a source.

    Args:
        key: Its WebDataset key: distinct in its split, without dots.
        label: Class index.
        path: The file that holds it, relative to the source's folder.
        offset: Where it begins in that file, in bytes; in a parquet file the number of its row.
        length: How many bytes it has; in a parquet file an estimate.
        crc32: CRC-32 of these bytes; None where the source has none.
    """

    key: str
    label: int
    path: str
    offset: int
    length: int
    crc32: int | None = None


class ImageReader(Protocol):
    """Read images that cannot be read in place by several processes."""

    def read(self, images: Mapping[str, Sequence[SourceImage]]) -> Iterator[tuple[str, int, bytes]]:
        """Read each file once, front to back.

        Args:
            images: The images to read in each file, by their offsets.

        Yields:
            The path of an image's file, its position among the images of that file, its bytes.

        Raises:
            InputError: When a file is damaged, has changed, or cannot be read.
        """


class Unpacked(NamedTuple):
    """A file, or a folder of files, that is not packed.

    Args:
        split: The split whose folder it is in; empty beside the folders of the splits.
        path: Relative to the source's folder.
        reason: Why it is not packed.
        num_files: How many files it stands for.
        is_error: Whether it may be an image that is missed: `--on-corrupt` says what to do then.
    """

    split: str
    path: str
    reason: str
    num_files: int = 1
    is_error: bool = False


@dataclass(frozen=True)
class Source:
    """A data set as somebody handed it over.

    Args:
        root: Its folder, or its address.
        layout: `kaggle`, `imagefolder`, `official`, `parquet` or `shards`.
        classes: Its classes, by index.
        splits: Its images by split, `train` and `validation`, each in a fixed order.
        unpacked: What else was found in it.
        notes: What to know about the whole, as sentences.
        name: What to call the data set unless `--dataset` says it; empty for the folder's name.
        options: What else the manifest of its shards records, such as a commit or a `parent`.
        fingerprint: Identifies the bytes of its images; None where their sizes have to do.
        reader: Reads the images; None where they are read in place.
    """

    root: Path | str
    layout: str
    classes: Classes
    splits: dict[str, list[SourceImage]]
    unpacked: list[Unpacked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None
    reader: ImageReader | None = None

    def __post_init__(self) -> None:
        """Check that there is something to pack.

        Raises:
            InputError: When there are no images at all.
        """
        if not any(self.splits.values()):
            raise InputError(
                f"the source {self.root} holds no images", expected="folders of images"
            )

    @property
    def default_name(self) -> str:
        """The data set's name where the user gives none."""
        return self.name or Path(self.root).resolve().name


class Listed(NamedTuple):
    """An image as a listing finds it, before it has a key: see `with_keys`."""

    stem: str
    wnid: str
    path: str
    offset: int
    length: int


def readable(name: str) -> str:
    """Return a file name as text that can be written as UTF-8, even where it is not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def with_keys(listed: Iterable[Listed], classes: Classes) -> list[SourceImage]:
    """Assign each image its class index and a key of its own.

    The key is the file's name without its ending. WebDataset ends a key at the first dot, so other
    dots become underscores. Names that then repeat (ImageFolder may have a `1.jpg` in every class)
    get their wnid in front, and a running number if that is still not enough.

    Args:
        listed: The images of one split, in a fixed order.
        classes: The classes that their wnids belong to.

    Returns:
        As many images, in the same order.

    Raises:
        InputError: When a name has the wnid of another class.
    """
    rows = list(listed)
    _require_own_wnids(rows)
    stems = [readable(row.stem).replace(".", "_") for row in rows]
    in_key = str.maketrans("./\0", "___")  # names of classes that are no folders may have any
    counts = Counter(stems)
    taken = {stem for stem, count in counts.items() if count == 1}
    images = []
    for row, stem in zip(rows, stems, strict=True):
        key = stem
        if counts[stem] > 1:
            base = key = f"{row.wnid.translate(in_key)}_{stem}"
            number = 1
            while key in taken:
                number += 1
                key = f"{base}-{number}"
            taken.add(key)
        label = classes.index_of[row.wnid]
        images.append(SourceImage(key, label, row.path, row.offset, row.length))
    return images


def _require_own_wnids(rows: Iterable[Listed]) -> None:
    """Raise an error if a file name has another wnid than its class: one of both is wrong."""
    for row in rows:
        if not WNID.fullmatch(row.wnid):
            continue  # a name of the user's own, such as one for a group of classes
        for wnid in wnids_in(row.stem):
            if wnid != row.wnid:
                raise InputError(
                    f"{readable(row.path)} is labelled {row.wnid}, but its name has the wnid "
                    f"{wnid}: {readable(row.stem)}",
                    expected="one wnid per image",
                    found=f"{row.wnid} by its folder or label, {wnid} by its name",
                    fix="move it to its class or rename it; a folder that holds several classes "
                    "needs a name that is no wnid",
                )
