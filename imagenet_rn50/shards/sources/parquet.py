"""Hugging Face's parquet files: `image` {bytes, path} and `label`, never decoded.

`datasets` says what the columns mean; the bytes are read by row group, front to back. (Loading them
with `datasets` would write a second copy of all pictures into its cache.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from imagenet_rn50.classes import WNID, Classes
from imagenet_rn50.errors import InputError
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION
from imagenet_rn50.shards.sources.base import Listed, Source, with_keys

if TYPE_CHECKING:
    import pyarrow.parquet as pq

# `n01440764_10026_n01440764.JPEG`, `ILSVRC2012_val_00000293_n01440764.JPEG`
_PATH = re.compile(r"(?P<stem>.+?)_(?P<wnid>n\d{8})")
_SPLITS = {TRAIN: ("train",), VALIDATION: ("validation", "val")}


def is_parquet(root: Path) -> bool:
    """Says whether `root` holds parquet files of a training or a validation split."""
    return any(_files(root, split) for split in _SPLITS)


def read_parquet(root: Path) -> Source:
    """Lists the pictures of a data set in parquet files.

    Args:
        root: The folder that holds `data/train-*.parquet`, or the files themselves.

    Raises:
        InputError: When the columns are others, or labels are not ranks of the paths' wnids.
    """
    files = {split: _files(root, split) for split in _SPLITS}
    if not any(files.values()):
        raise InputError(
            f"the source {root} holds no parquet files",
            expected="data/train-*.parquet or data/validation-*.parquet",
        )
    rows = {split: [*_rows(root, files[split])] for split in _SPLITS}
    names = _label_names(files[TRAIN] or files[VALIDATION])
    classes = _classes(root, [row for split in rows.values() for row in split], names)
    splits = {
        split: with_keys((listed for _, listed in chosen), classes)
        for split, chosen in rows.items()
        if chosen
    }
    return Source(root=root, layout="parquet", classes=classes, splits=splits)


def row_groups(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Yields the number of the first row of each row group of a file, and its pictures' bytes."""
    with _opened(path) as file:
        begin = 0
        for group in range(file.metadata.num_row_groups):
            column = file.read_row_group(group, columns=["image.bytes"]).column("image")
            yield begin, [(value or {}).get("bytes") or b"" for value in column.to_pylist()]
            begin += len(column)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens a parquet file.

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
    """Returns the parquet files of a split, by name."""
    folder = root / "data" if (root / "data").is_dir() else root
    return sorted(
        path for prefix in _SPLITS[split] for path in folder.glob(f"{prefix}[-_.]*.parquet")
    )


def _rows(root: Path, files: Sequence[Path]) -> Iterator[tuple[int, Listed]]:
    """Lists labels, paths and places; the bytes stay where they are."""
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
            # What a picture takes is only known of all together.
            mean = sum(p.stat().st_size for p in (path,)) // max(1, len(table))
        labels = table.column("label").to_pylist()
        for row, (image, label) in enumerate(
            zip(table.column("image").to_pylist(), labels, strict=True)
        ):
            name = PurePosixPath((image or {}).get("path") or "").stem
            match = _PATH.fullmatch(name)
            stem, wnid = (match["stem"], match["wnid"]) if match else (name, "")
            place = path.relative_to(root).as_posix()
            yield label, Listed(stem or f"{path.stem}-{row}", wnid, place, row, mean)


def _label_names(files: Sequence[Path]) -> list[str]:
    """Returns the names of the class indices, as `datasets` reads them from the file."""
    from datasets import ClassLabel, Features

    with _opened(files[0]) as file:
        feature = Features.from_arrow_schema(file.schema_arrow).get("label")
    return list(feature.names) if isinstance(feature, ClassLabel) else []


def _classes(root: Path, rows: Sequence[tuple[int, Listed]], names: list[str]) -> Classes:
    """Makes the classes; the label of each row must be the rank of the wnid in its path."""
    wnids = sorted({listed.wnid for _, listed in rows if listed.wnid})
    rank = {wnid: index for index, wnid in enumerate(wnids)}
    for label, listed in rows:
        if not listed.wnid or rank[listed.wnid] != label:
            raise InputError(
                f"row {listed.offset} of {root / listed.path} has the label {label}",
                expected=f"{rank[listed.wnid]}, the rank of {listed.wnid} among sorted wnids"
                if listed.wnid
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
