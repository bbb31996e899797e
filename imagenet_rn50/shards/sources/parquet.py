"""Hugging Face's parquet files: `image` {bytes, path} and `label`, never decoded.

`datasets` says what the columns mean; the bytes are read by row group, front to back. (Loading them
with `datasets` would write a second copy of all images into its cache.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from imagenet_rn50.classes import WNID, Classes
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION
from imagenet_rn50.shards.sources.base import Listed, Source, SourceImage, Unpacked, with_keys
from imagenet_rn50.shards.sources.scan import others_beside
from imagenet_rn50.utils.errors import InputError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

# `n01440764_10026_n01440764.JPEG`, `ILSVRC2012_val_00000293_n01440764.JPEG`
_PATH = re.compile(r"(?P<stem>.+?)_(?P<wnid>n\d{8})")
_SPLITS = {TRAIN: ("train",), VALIDATION: ("validation", "valid", "val")}
# `train-00002-of-00004.parquet`, with a hash behind it in older downloads; or `train-2.parquet`
_NUMBERED = re.compile(
    r"(?P<head>.+?[-_.])(?P<number>\d+)(?:-of-(?P<total>\d+))?(?P<tail>(?:-[0-9a-f]+)?\.parquet)"
)


def is_parquet(root: Path) -> bool:
    """Return whether `root` holds parquet files of a training or a validation split."""
    return any(_files(root, split) for split in _SPLITS)


def read_parquet(root: Path, train_only: bool = False) -> Source:
    """List the images of a data set in parquet files.

    Args:
        root: The folder that holds `data/train-*.parquet`, or the files themselves.
        train_only: Whether validation is not read.

    Raises:
        InputError: When a file of a numbered set is missing, the columns are others, or labels are
            not ranks of the paths' wnids.
    """
    files = {split: _files(root, split) for split in _SPLITS}
    folder = _folder(root)
    unpacked = others_beside(
        root, folder, {path.name for found in files.values() for path in found}
    )
    if train_only:
        unpacked += [
            Unpacked("", path.relative_to(root).as_posix(), "--train-only")
            for path in files[VALIDATION]
        ]
        files[VALIDATION] = []
    if not any(files.values()):
        raise InputError(
            f"the source {root} holds no parquet files",
            expected="data/train-*.parquet or data/validation-*.parquet",
        )
    for found in files.values():
        _require_no_gap(found)
    rows = {split: [*_rows(root, split, files[split], unpacked)] for split in _SPLITS}
    names = _label_names(files[TRAIN] or files[VALIDATION])
    classes = _classes(root, [row for split in rows.values() for row in split], names)
    splits = {
        split: with_keys(
            (listed._replace(wnid=classes.wnids[label]) for label, listed in chosen), classes
        )
        for split, chosen in rows.items()
        if chosen
    }
    return Source(root, "parquet", classes, splits, unpacked, reader=ParquetReader(root))


@dataclass(frozen=True)
class ParquetReader:
    """Read images by row group.

    Args:
        root: Folder of the source.
    """

    root: Path

    def read(self, images: Mapping[str, Sequence[SourceImage]]) -> Iterator[tuple[str, int, bytes]]:
        """Read each file once; see `ImageReader`."""
        for path, rows in images.items():
            index = 0
            with _opened(self.root / path) as file:
                begin = 0
                for group in range(file.metadata.num_row_groups):
                    end = begin + file.metadata.row_group(group).num_rows
                    if index < len(rows) and rows[index].offset < end:
                        column = file.read_row_group(group, columns=["image.bytes"]).column("image")
                        while index < len(rows) and rows[index].offset < end:
                            value = column[rows[index].offset - begin].as_py()
                            yield path, index, (value or {}).get("bytes") or b""
                            index += 1
                    begin = end


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a parquet file.

    Raises:
        InputError: When it cannot be read, here or in the body.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} cannot be read", found=str(error), fix="fetch the file again"
        ) from None


def _files(root: Path, split: str) -> list[Path]:
    """Return the parquet files of a split, by name."""
    return sorted(
        path for prefix in _SPLITS[split] for path in _folder(root).glob(f"{prefix}[-_.]*.parquet")
    )


def _folder(root: Path) -> Path:
    return root / "data" if (root / "data").is_dir() else root


def _require_no_gap(files: Sequence[Path]) -> None:
    """Raise an error if a file of a numbered set is missing, or there are files of two sets."""
    matches = [match for path in files if (match := _NUMBERED.fullmatch(path.name))]
    if not matches:
        return
    sets = {(match["head"], match["total"]) for match in matches}
    if len(sets) > 1 or len(matches) != len(files):
        raise InputError(
            f"{files[0].parent} holds parquet files of several sets of the same split",
            expected="one numbered set, such as train-00000-of-00004.parquet to train-00003-of-...",
            found=", ".join(path.name for path in files[:5]),
            fix="move all but one of the sets elsewhere",
        )
    by_number = {int(match["number"]): match for match in matches}
    last = matches[-1]
    total = int(last["total"]) if last["total"] else max(by_number) + 1
    first = 0 if last["total"] else min(1, min(by_number))
    missing = [number for number in range(first, total) if number not in by_number]
    if missing or len(by_number) != len(matches) or max(by_number) >= max(total, 1):
        names = [
            f"{last['head']}{number:0{len(last['number'])}d}"
            + (f"-of-{last['total']}" if last["total"] else "")
            + ".parquet"
            for number in missing
        ]
        raise InputError(
            f"{files[0].parent / names[0]} is missing"
            if names
            else f"{files[0].parent} holds a file of a numbered set twice, or too many",
            expected=f"{total - first} files, numbered without a gap",
            found=f"{len(files)} files" + (f"; {len(names)} missing" if names else ""),
            fix="fetch the files again that are missing" if names else "move the surplus elsewhere",
        )


def _rows(
    root: Path, split: str, files: Sequence[Path], unpacked: list[Unpacked]
) -> Iterator[tuple[int, Listed]]:
    """List labels, paths and places; the bytes stay where they are."""
    for path in files:
        with _opened(path) as file:
            columns = {file.schema.column(i).path for i in range(len(file.schema))}
            if not {"image.bytes", "image.path", "label"} <= columns:
                raise InputError(
                    f"{path} has other columns",
                    expected="image {bytes, path} and label",
                    found=", ".join(sorted(columns)),
                )
            table = file.read(columns=["image.path", "label"])
            # What an image takes is only known of all together.
            mean = sum(p.stat().st_size for p in (path,)) // max(1, len(table))
        labels = table.column("label").to_pylist()
        for row, (image, label) in enumerate(
            zip(table.column("image").to_pylist(), labels, strict=True)
        ):
            place = path.relative_to(root).as_posix()
            if image is None:
                unpacked.append(Unpacked(split, f"row {row} of {place}", "no image", is_error=True))
                continue
            name = PurePosixPath(image.get("path") or "").stem
            match = _PATH.fullmatch(name)
            stem, wnid = (match["stem"], match["wnid"]) if match else (name, "")
            yield label, Listed(stem or f"{path.stem}-{row}", wnid, place, row, mean)


def _label_names(files: Sequence[Path]) -> list[str]:
    """Return the names of the class indices, as `datasets` reads them from the file."""
    from datasets import ClassLabel, Features

    with _opened(files[0]) as file:
        feature = Features.from_arrow_schema(file.schema_arrow).get("label")
    return list(feature.names) if isinstance(feature, ClassLabel) else []


def _classes(root: Path, rows: Sequence[tuple[int, Listed]], names: list[str]) -> Classes:
    """Make the classes; the label of each row must be the rank of the wnid in its path.

    A row whose path has no wnid, or that has no path, is of the class that its label means in the
    other rows.
    """
    wnids = sorted({listed.wnid for _, listed in rows if listed.wnid})
    rank = {wnid: index for index, wnid in enumerate(wnids)}
    for label, listed in rows:
        is_known = isinstance(label, int) and 0 <= label < len(wnids)
        if not is_known or (listed.wnid and rank[listed.wnid] != label):
            raise InputError(
                f"row {listed.offset} of {root / listed.path} has the label {label}",
                expected=f"{rank[listed.wnid]}, the rank of {listed.wnid} among sorted wnids"
                if listed.wnid
                else f"0 to {len(wnids) - 1}, the rank of a wnid among those in the paths"
                if wnids
                else "a path that ends in the wnid, as n01440764_10026_n01440764.JPEG",
                found=f"path {listed.stem!r}",
            )
    if names and len(names) != len(wnids):
        raise InputError(
            f"{root} names other classes than its images have",
            expected=f"{len(wnids)} names, one for each wnid in the paths",
            found=f"{len(names)} names in the schema of the files",
            fix="download all files of the data set; of a part, correct the names of `label`",
        )
    for wnid, name in zip(wnids, names, strict=False):
        if WNID.fullmatch(name) and name != wnid:
            raise InputError(
                f"{root} gives class {rank[wnid]} two wnids",
                expected=f"{wnid}, as the paths of its images say",
                found=f"{name} among the names of the label",
            )
    names = names or list(wnids)
    return Classes(wnids=tuple(wnids), names=tuple(names))
