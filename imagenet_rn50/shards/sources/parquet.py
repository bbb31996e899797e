"""Data sets in parquet files, as Hugging Face stores them; images are copied, never decoded.

`datasets` says what the columns mean; the bytes are read by row group, front to back. (Loading them
with `datasets` would write a second copy of all images into its cache.)
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from imagenet_rn50.classes import WNID, Classes
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION
from imagenet_rn50.shards.sources.base import (
    Listed,
    Source,
    SourceImage,
    Unpacked,
    with_keys,
)
from imagenet_rn50.shards.sources.parquet_columns import (
    ANY_COLUMNS,
    IMAGE,
    LABEL,
    ColumnOptions,
    Columns,
    find_columns,
)
from imagenet_rn50.shards.sources.parquet_files import (
    TEST,
    LocalFiles,
    ParquetFiles,
    choose_folder,
    files_beside,
    has_splits,
    require_no_gap,
)
from imagenet_rn50.shards.sources.scan import TEST_REASON
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.formatting import shortened
from imagenet_rn50.utils.logging import progress_bar

if TYPE_CHECKING:
    import pyarrow.parquet as pq

# `n01440764_10026_n01440764.JPEG`, `ILSVRC2012_val_00000293_n01440764.JPEG`
_PATH = re.compile(r"(?P<stem>.+?)_(?P<wnid>n\d{8})")
_BUFFER_BYTES, _REMOTE_BUFFER_BYTES = 1 << 20, 1 << 24  # that are read at a time
_BATCH_ROWS = 64
_NUM_THREADS = 8  # that list remote files
_NO_LABEL = -1  # as data sets mark images whose class is kept secret
_MAX_SHOWN = 5


def is_parquet(root: Path) -> bool:
    """Return whether `root` holds parquet files of a training or a validation split."""
    return has_splits(LocalFiles(root).names())


def read_parquet(
    root: Path,
    train_only: bool = False,
    *,
    column_options: ColumnOptions = ANY_COLUMNS,
    allow_test: bool = True,
) -> Source:
    """List the images of parquet files on this machine; see `list_parquet`."""
    return list_parquet(LocalFiles(root), train_only, column_options, allow_test=allow_test)


def list_parquet(
    files: ParquetFiles,
    train_only: bool = False,
    column_options: ColumnOptions = ANY_COLUMNS,
    *,
    allow_test: bool = True,
) -> Source:
    """List the images of a data set in parquet files.

    Args:
        files: `data/train-*.parquet`, `train.parquet`, `train/0000.parquet` and the like, in their
            folder or in a folder below.
        train_only: Whether validation is not read.
        column_options: Options that select the columns.
        allow_test: Whether to validate on the split `test` if there is no validation split.

    Raises:
        InputError: When a file of a numbered set is missing, the columns are not found, or the
            labels and the classes' names, or the wnids in the paths, contradict each other.
    """
    folder, found = choose_folder(files)
    unpacked = files_beside(files, folder, found)
    if train_only:
        unpacked += [Unpacked("", name, "--train-only") for name in found.pop(VALIDATION, [])]
        unpacked += [Unpacked("", name, TEST_REASON) for name in found.pop(TEST, [])]
    for names in found.values():
        require_no_gap(files.root, names)
    listing = _Listing(unpacked)
    is_test = False
    for split in (TRAIN, VALIDATION):
        listing.read(files, split, found.get(split, []), column_options)
    if allow_test and not train_only and not listing.rows[VALIDATION]:
        listing.read(files, VALIDATION, found.get(TEST, []), column_options)
        is_test = bool(listing.rows[VALIDATION])
    else:
        unpacked += [Unpacked("", name, TEST_REASON) for name in found.get(TEST, [])]
    columns = listing.columns
    if columns is None or not any(listing.rows.values()):
        raise InputError(
            f"the parquet files of {files.root} hold no labelled images",
            expected="images and their classes",
            found="; ".join(f"{entry.path} ({entry.reason})" for entry in unpacked[:_MAX_SHOWN]),
        )
    classes, splits = _classify(files.root, listing.rows, columns)
    notes = _column_notes(columns) + _class_notes(classes, splits, columns)
    if is_test:
        notes.append(
            "validation is the split `test`, for no other has labels: whatever is chosen by its "
            "accuracy is chosen on the test images"
        )
    return Source(
        files.root,
        "parquet",
        classes,
        splits,
        unpacked,
        notes,
        options=_options(columns, is_test=is_test),
        reader=ParquetReader(files, columns),
    )


def _options(columns: Columns, *, is_test: bool) -> dict[str, Any]:
    """Return what the manifest of the shards records of what was read."""
    options = {}
    if columns.image != IMAGE:
        options["image_column"] = columns.image
    if columns.label != LABEL:
        options["label_column"] = columns.label
    if is_test:
        options["validation_split"] = TEST
    return options


@dataclass(frozen=True)
class ParquetReader:
    """Read images by row group.

    Args:
        files: The files.
        columns: Which column holds the images.
    """

    files: ParquetFiles
    columns: Columns

    def read(self, images: Mapping[str, Sequence[SourceImage]]) -> Iterator[tuple[str, int, bytes]]:
        """Read each row group that holds an image once; see `ImageReader`."""
        for path, rows in images.items():
            index = 0
            with _opened(self.files, path) as file:
                for begin, batch in self._batches(file, [row.offset for row in rows]):
                    while index < len(rows) and rows[index].offset < begin + len(batch):
                        value = batch[rows[index].offset - begin].as_py()
                        yield path, index, self.columns.bytes_of(value)
                        index += 1

    def _batches(self, file: pq.ParquetFile, wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Yield the number of the first row, and the images, of some rows at a time.

        Writers other than `datasets` may put all rows into one group, hence batches.
        """
        begin = 0
        for group in range(file.metadata.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            first = bisect_left(wanted, begin)
            if first < len(wanted) and wanted[first] < end:
                position = begin
                for batch in file.iter_batches(
                    _BATCH_ROWS, [group], [self.columns.bytes_path], use_threads=False
                ):
                    yield position, batch.column(self.columns.image)
                    position += batch.num_rows
            begin = end


@contextmanager
def _opened(
    files: ParquetFiles, name: str, *, pre_buffer: bool = False
) -> Iterator[pq.ParquetFile]:
    """Open a parquet file.

    Args:
        files: The files.
        name: Which.
        pre_buffer: Whether to read columns that are close to each other at once, and whole.

    Raises:
        InputError: When it cannot be read, here or in the body.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        size = _REMOTE_BUFFER_BYTES if files.is_remote else _BUFFER_BYTES
        source = files.open(name)
        with pq.ParquetFile(source, buffer_size=size, pre_buffer=pre_buffer) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{files.root}/{name} cannot be read", found=str(error), fix="fetch the file again"
        ) from None


class _Row(NamedTuple):
    """A labelled image: its label as the file has it, and its place."""

    label: int | str
    listed: Listed


@dataclass
class _Listing:
    """The rows of the splits.

    Args:
        unpacked: Gets what is not packed.
        rows: The labelled images of each split.
        columns: Those of the first file; all must have them.
    """

    unpacked: list[Unpacked]
    rows: dict[str, list[_Row]] = field(default_factory=lambda: {TRAIN: [], VALIDATION: []})
    columns: Columns | None = None
    _first: str = ""

    def read(
        self,
        files: ParquetFiles,
        split: str,
        names: Sequence[str],
        column_options: ColumnOptions,
    ) -> None:
        """List the files of a split.

        Raises:
            InputError: When columns or names of classes differ from those of the files before.
        """
        with (
            ThreadPoolExecutor(_NUM_THREADS if files.is_remote else 1) as pool,
            progress_bar(
                total=len(names), description="listing", unit="file", enabled=files.is_remote
            ) as bar,
        ):
            listed = pool.map(lambda name: _list_file(files, split, name, column_options), names)
            unlabelled: list[Unpacked] = []
            for name, (columns, rows, without_image, without_label) in zip(
                names, listed, strict=True
            ):
                self._require_same_columns(name, columns)
                self.rows[split] += rows
                self.unpacked += without_image
                unlabelled += without_label
                bar.update()
        if not self.rows[split]:  # of a test split, say; no image is missed among others
            unlabelled = [entry._replace(split="", is_error=False) for entry in unlabelled]
        self.unpacked += unlabelled

    def _require_same_columns(self, name: str, columns: Columns) -> None:
        if self.columns is None:
            self.columns, self._first = columns, name
        if columns[:-1] != self.columns[:-1]:
            raise InputError(
                f"{name} has other columns or classes than {self._first}",
                expected=_describe(self.columns),
                found=_describe(columns),
            )


def _describe(columns: Columns) -> str:
    names = columns.class_names
    shown = "" if names is None else f" of {len(names)} classes: {', '.join(names[:_MAX_SHOWN])}"
    return f"images in {columns.bytes_path}, labels in {columns.label}{shown}"


def _list_file(
    files: ParquetFiles,
    split: str,
    name: str,
    column_options: ColumnOptions,
) -> tuple[Columns, list[_Row], list[Unpacked], list[Unpacked]]:
    """List labels, paths and places; the bytes stay where they are.

    Returns:
        The columns, the labelled images, what has no image, and what has no label.
    """
    where = f"{files.root}/{name}"
    with _opened(files, name, pre_buffer=files.is_remote) as file:
        columns = find_columns(file.schema_arrow, where, column_options)
        read = [columns.label] + ([columns.name_path] if columns.name_path else [])
        table = file.read(columns=read)
        num_rows = file.metadata.num_rows
    # What an image takes is only known of all together.
    mean = files.size(name) // max(1, num_rows)
    values = table.column(columns.label).to_pylist()
    images = (
        table.column(columns.image).to_pylist()
        if columns.name_path
        else [{"path": None}] * num_rows
    )
    rows: list[_Row] = []
    without_image: list[int] = []
    without_label: list[int] = []
    for row, (image, label) in enumerate(zip(images, values, strict=True)):
        if image is None:
            without_image.append(row)
        elif label is None or label in {_NO_LABEL, ""}:
            without_label.append(row)
        else:
            file_name = PurePosixPath((image.get("path") or "").replace("\0", "_")).stem
            match = _PATH.fullmatch(file_name) if isinstance(label, int) else None
            stem, wnid = (match["stem"], match["wnid"]) if match else (file_name, "")
            stem = stem or f"{PurePosixPath(name).stem}-{row}"
            rows.append(_Row(label, Listed(stem, wnid, name, row, mean)))
    return (
        columns,
        rows,
        _unusable(split, name, without_image, "no image"),
        _unusable(split, name, without_label, "no label"),
    )


def _unusable(split: str, name: str, rows: Sequence[int], reason: str) -> list[Unpacked]:
    """Return an entry for rows of a file that cannot be packed."""
    if not rows:
        return []
    shown = ", ".join(map(str, rows[:_MAX_SHOWN])) + ", ..." * (len(rows) > _MAX_SHOWN)
    plural = "s" * (len(rows) > 1)
    return [Unpacked(split, f"row{plural} {shown} of {name}", reason, len(rows), is_error=True)]


def _classify(
    root: Path | str, rows: Mapping[str, Sequence[_Row]], columns: Columns
) -> tuple[Classes, dict[str, list[SourceImage]]]:
    """Make the classes, and give each image its class.

    Wnids in the paths decide where there are any; else the names of the labels are the classes.
    """
    everything = [row for split in rows.values() for row in split]
    if any(row.listed.wnid for row in everything):
        classes = _classes_by_wnid(root, everything, list(columns.class_names or ()))
        wnid_of: Mapping[int | str, str] = dict(enumerate(classes.wnids))
    else:
        wnid_of = _class_names(root, everything, columns)
        wnids = tuple(sorted(wnid_of.values()))
        classes = Classes(wnids, wnids)
    splits = {
        name: with_keys((row.listed._replace(wnid=wnid_of[row.label]) for row in chosen), classes)
        for name, chosen in rows.items()
        if chosen
    }
    return classes, splits


def _class_names(root: Path | str, rows: Sequence[_Row], columns: Columns) -> dict[int | str, str]:
    """Return the name of each label, which is its class.

    Raises:
        InputError: When labels are numbers without names, or one has no name.
    """
    labels = {row.label for row in rows}
    if columns.class_names is None:
        if numbers := sorted(label for label in labels if isinstance(label, int)):
            first = rows[0].listed
            raise InputError(
                f"the labels of {root} are numbers without names: {columns.label} of row "
                f"{first.offset} of {first.path} is {rows[0].label}",
                expected="a ClassLabel, which names its classes, or paths that end in the wnid, as "
                "n01440764_10026_n01440764.JPEG",
                found=f"{len(numbers)} numbers from {numbers[0]} to {numbers[-1]}",
                fix="name them: --label-names FILE, with a name per line from label 0",
            )
        return {label: str(label) for label in labels}
    named: dict[int | str, str] = dict(enumerate(columns.class_names))
    if labels - named.keys():
        row = next(row for row in rows if row.label not in named)
        raise InputError(
            f"row {row.listed.offset} of {root}/{row.listed.path} has the label {row.label}",
            expected=f"0 to {len(named) - 1}, for {columns.label} names {len(named)} classes",
        )
    if blank := [label for label, name in named.items() if not name.strip()]:
        raise InputError(f"the class {blank[0]} of {columns.label} has an empty name")
    return named


def _classes_by_wnid(root: Path | str, rows: Sequence[_Row], names: list[str]) -> Classes:
    """Make the classes; the label of each row must be the rank of the wnid in its path.

    A row whose path has no wnid, or that has no path, is of the class that its label means in the
    other rows.
    """
    wnids = sorted({row.listed.wnid for row in rows if row.listed.wnid})
    rank = {wnid: index for index, wnid in enumerate(wnids)}
    for label, listed in rows:
        is_known = isinstance(label, int) and 0 <= label < len(wnids)
        if not is_known or (listed.wnid and rank[listed.wnid] != label):
            raise InputError(
                f"row {listed.offset} of {root}/{listed.path} has the label {label}",
                expected=f"{rank[listed.wnid]}, the rank of {listed.wnid} among sorted wnids"
                if listed.wnid
                else f"0 to {len(wnids) - 1}, the rank of a wnid among those in the paths",
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


def _column_notes(columns: Columns) -> list[str]:
    """Return which columns were read, unless they have the usual names, and which were not."""
    notes = []
    if (columns.image, columns.label) != (IMAGE, LABEL):
        notes.append(f"images are column {columns.image}, labels are column {columns.label}")
    if columns.others:
        notes.append(f"columns that are not packed: {', '.join(columns.others)}")
    return notes


def _class_notes(
    classes: Classes, splits: Mapping[str, Sequence[SourceImage]], columns: Columns
) -> list[str]:
    """Return how labels became class indices, and which classes training lacks."""
    notes = []
    names = columns.class_names
    if classes.names == classes.wnids and names is not None and list(names) != sorted(names):
        example = next(label for label, name in enumerate(names) if classes.wnids[label] != name)
        notes.append(
            "class indices are the ranks of the sorted names, not the labels of the files: label "
            f"{example} ({names[example]}) is class {classes.index_of[names[example]]}"
        )
    if TRAIN in splits:
        trained = {image.label for image in splits[TRAIN]}
        missing = [wnid for wnid, label in classes.index_of.items() if label not in trained]
        if missing:
            notes.append(f"{len(missing)} classes have no training images: {shortened(missing)}")
    return notes
