"""The manifest: which samples exist, where their bytes are, and which class they have.

Written when shards are packed, and the only thing that loading needs besides the shards themselves.

    SHARDS/
      manifest.json               per split: its shards with number of samples, bytes and sha256
      manifest-train.npz          per sample: offset, length, CRC-32 of its JPEG, class index, key
      manifest-validation.npz     (both uncompressed, without pickles)
      classes.json                index, wnid and name of each class
      _info.json                  lengths of the shards, for timm
      imagenet1k-train-0000.tar   ...

Samples are numbered shard by shard, and front to back within a shard. That number is the sample
index.

A manifest is a view. It need not stand beside its shards: `location` names another folder or an
address. It need not list all samples of a shard: `Shard.num_samples` counts those that it does.
Its class indices need not be those in the shards: `source_labels` gives theirs. So a subset, a
hold-out or an index of remote shards is a folder with a manifest, and copies no image.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_json, sha256_of_file, write_bytes, write_json
from imagenet_rn50.utils.formatting import counted, quoted

FILE_NAME = "manifest.json"
INFO_NAME = "_info.json"
FORMAT = "imagenet_rn50 manifest"
VERSION = 1
TRAIN = "train"
VALIDATION = "validation"

OFFICIAL_TAR = re.compile(r"ILSVRC2012|n\d{8}\.tar")  # of images, to pack
_COLUMNS = ("offset", "length", "label", "key")
_OPTIONAL_COLUMN = "crc32"


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Args:
        name: Its path relative to the location of the shards, such as `imagenet1k-train-0000.tar`
            or `train/000.tar`.
        num_samples: Number of its samples that the manifest lists.
        num_bytes: Its size in bytes.
        sha256: Its SHA-256, 64 hexadecimal digits.
    """

    name: str
    num_samples: int
    num_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        """Refuse paths that lead out of the location.

        Raises:
            InputError: When the name is absolute or has empty parts, `.` or `..`.
        """
        if {"", ".", ".."} & set(self.name.split("/")) or "\0" in self.name:
            raise InputError(
                f"{self.name!r} is not a path inside the location of the shards",
                expected="a relative path such as imagenet1k-train-0000.tar or train/000.tar",
            )


@dataclass(frozen=True, eq=False)
class Split:
    """The samples of `train` or `validation`, in the order of the shards.

    Args:
        shards: The tar files, in the order of their numbers.
        offsets: Where each sample's JPEG begins in its shard, in bytes; (n,) int64.
        lengths: How long each JPEG is, in bytes; (n,) int32.
        labels: Class indices; (n,) int32.
        keys: Keys, UTF-8; (n,) fixed-width bytes.
        crc32s: CRC-32 of each JPEG, by which reading and `verify` find a damaged sample;
            (n,) uint32, or None where nobody computed them.
    """

    shards: tuple[Shard, ...]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int32]
    labels: NDArray[np.int32]
    keys: NDArray[np.bytes_]
    crc32s: NDArray[np.uint32] | None = None

    def __post_init__(self) -> None:
        """Check that columns and shards have the same number of samples.

        Raises:
            InputError: When their counts differ.
        """
        counted = sum(shard.num_samples for shard in self.shards)
        columns = {len(self.offsets), len(self.lengths), len(self.labels), len(self.keys)}
        columns |= set() if self.crc32s is None else {len(self.crc32s)}
        if columns != {counted}:
            raise InputError(
                "the manifest is inconsistent",
                expected=f"{counted} samples, as its shards add up to",
                found=f"columns of {sorted(columns)} samples",
            )

    @property
    def num_samples(self) -> int:
        """Number of samples in all shards together."""
        return len(self.labels)

    @cached_property
    def shard_sizes(self) -> NDArray[np.int64]:
        """Number of samples of each shard; (num_shards,) int64."""
        return np.array([shard.num_samples for shard in self.shards], dtype=np.int64)

    @cached_property
    def shard_starts(self) -> NDArray[np.int64]:
        """Index of each shard's first sample, and n at the end; (num_shards + 1,) int64."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.shard_sizes)])

    def shard_of(self, index: int) -> int:
        """Return the number of the shard that holds sample `index`."""
        return int(self.shard_starts.searchsorted(index, side="right")) - 1

    def select(self, indices: NDArray[np.int64]) -> Split:
        """Return a view of some samples; shards without any of them are left out.

        Args:
            indices: Sample indices, ascending and distinct; (m,) int64.
        """
        bounds = np.searchsorted(indices, self.shard_starts)
        counts = np.diff(bounds).tolist()
        return Split(
            shards=tuple(
                replace(shard, num_samples=count)
                for shard, count in zip(self.shards, counts, strict=True)
                if count
            ),
            offsets=self.offsets[indices],
            lengths=self.lengths[indices],
            labels=self.labels[indices],
            keys=self.keys[indices],
            crc32s=None if self.crc32s is None else self.crc32s[indices],
        )

    def key_of(self, index: int) -> str:
        """Return the key of sample `index`, such as `n01440764_10026`."""
        return bytes(self.keys[index]).decode("utf-8")


@dataclass(frozen=True, eq=False)
class Manifest:
    """A data set: its name, how its shards were made, and its splits.

    Args:
        dataset: Its name, such as `imagenet1k`.
        options: How the shards were made (seed, resizing, ...), or how the view was.
        splits: By name: `train`, `validation`.
        classes_sha256: Of `classes.json` beside it; None where the classes are not known.
        location: Where the shards are: a path, relative to the manifest's folder unless absolute,
            or an address; None for the manifest's own folder.
        source_labels: The class index in the shards' own labels of each class of the manifest;
            None where they are the same.
    """

    dataset: str
    options: dict[str, Any]
    splits: dict[str, Split]
    classes_sha256: str | None = None
    location: str | None = None
    source_labels: tuple[int, ...] | None = None

    @property
    def is_subset(self) -> bool:
        """Whether its shards may hold samples that it does not list."""
        return "subset" in self.options or "num_skipped" in self.options

    @property
    def pack_options(self) -> dict[str, Any]:
        """How the shards were made: of a subset, the options of what it was selected from."""
        options = self.options
        while "subset" in options:
            options = options["parent"]["options"]
        return options

    def num_bytes_of(self, name: str) -> int:
        """Return how many bytes an epoch reads: of whole shards all, of a subset its images."""
        split = self.split(name)
        if self.is_subset:
            return int(split.lengths.sum(dtype=np.int64))
        return sum(shard.num_bytes for shard in split.shards)

    def save(self, folder: Path) -> str:
        """Write the manifest into `folder`: each split's columns first, then the JSON.

        Returns:
            The fingerprint; see `Manifest.fingerprint_of`.
        """
        content: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "dataset": self.dataset,
            "options": self.options,
            "classes_sha256": self.classes_sha256,
        }
        if self.location is not None:
            content["location"] = self.location
        if self.source_labels is not None:
            content["source_labels"] = list(self.source_labels)
        content["splits"] = {}
        for name, split in self.splits.items():
            columns = _encode_columns(split)
            file_name = f"manifest-{name}.npz"
            write_bytes(folder / file_name, columns)
            content["splits"][name] = {
                "num_samples": split.num_samples,
                "columns": file_name,
                "columns_sha256": hashlib.sha256(columns).hexdigest(),
                "shards": [asdict(shard) for shard in split.shards],
            }
        write_json(folder / FILE_NAME, content)
        return self.fingerprint_of(folder)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest in `folder`, and check its columns against their hash.

        Raises:
            InputError: When there is none, or it is damaged, or of another format.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise no_manifest(folder)
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{path} is not a manifest", expected=f'"format": "{FORMAT}"')
        if content.get("version") != VERSION:
            raise InputError(
                f"{path} has an unsupported version",
                expected=f"version {VERSION}",
                found=f"version {content.get('version')}",
                fix="pack the shards again, or use the release that wrote them",
            )
        try:
            splits = {name: _read_split(folder, entry) for name, entry in content["splits"].items()}
            source_labels = content.get("source_labels")
            return cls(
                content["dataset"],
                content["options"],
                splits,
                classes_sha256=content.get("classes_sha256"),
                location=content.get("location"),
                source_labels=None if source_labels is None else tuple(map(int, source_labels)),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path} is damaged: {error!r}",
                expected="dataset, options and splits",
                fix=f"rebuild it: python shard_imagenet.py index --shards {quoted(folder)}",
            ) from None

    @staticmethod
    def fingerprint_of(folder: Path) -> str:
        """Return the fingerprint of a shard set: what resume compares.

        SHA-256 over the names and hashes of all shards and columns. Neither the formatting of the
        JSON, nor the recorded options, nor the location of the shards change it: shards that were
        moved or mirrored are the same data set.
        """
        splits = read_json(folder / FILE_NAME)["splits"]
        return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()

    @staticmethod
    def options_of(folder: Path) -> dict[str, Any]:
        """Return how the shards in `folder` were made, without reading their columns."""
        options: dict[str, Any] = read_json(folder / FILE_NAME)["options"]
        return options

    @staticmethod
    def num_samples_of(folder: Path) -> dict[str, int]:
        """Return the number of samples of each split, without reading its columns."""
        splits = read_json(folder / FILE_NAME)["splits"]
        return {name: int(entry["num_samples"]) for name, entry in splits.items()}

    @staticmethod
    def location_of(folder: Path) -> str | None:
        """Return where the shards of the manifest in `folder` are, as `location` says it.

        None too where there is no manifest, or it cannot be read: `load` raises the error.
        """
        try:
            content = read_json(folder / FILE_NAME)
        except InputError:
            return None
        location = content.get("location") if isinstance(content, dict) else None
        return None if location is None else str(location)

    def split(self, name: str) -> Split:
        """Return the split of that name.

        Raises:
            InputError: When the shards have no such split.
        """
        if name not in self.splits:
            raise InputError(
                f"the shards have no split {name!r}",
                found=f"splits {sorted(self.splits)}",
                fix="to take one out of the training images: python shard_imagenet.py subset "
                "--shards SHARDS --out DIR --holdout 0.1, and then name DIR"
                if name == VALIDATION and TRAIN in self.splits
                else None,
            )
        return self.splits[name]


def timm_info(manifest: Manifest) -> dict[str, Any]:
    """Return the content of `_info.json`, as timm's WebDataset reader expects it."""
    return {
        "splits": {
            name: {
                "name": name,
                "num_samples": split.num_samples,
                "filenames": [shard.name for shard in split.shards],
                "shard_lengths": [shard.num_samples for shard in split.shards],
            }
            for name, split in manifest.splits.items()
        }
    }


def no_manifest(folder: Path) -> InputError:
    """Return the error for a folder without a manifest; its fix depends on what is there."""
    found, fix = "no such folder", _pack_command("DIR", quoted(folder))
    if folder.is_dir():
        found, fix = _look_for_shards(folder)
    elif folder.exists():
        found = "a file"
        is_inside = (folder.parent / FILE_NAME).is_file()
        fix = f"name the folder, {folder.parent}" if is_inside else "name the folder of the shards"
    return InputError(
        f"{folder} holds no manifest",
        expected=f"{folder / FILE_NAME}, written when the shards were packed",
        found=found,
        fix=fix,
    )


def _pack_command(source: str, out: str) -> str:
    return f"python shard_imagenet.py pack --source {source} --out {out}"


def _look_for_shards(folder: Path) -> tuple[str, str]:
    """Return what a folder without a manifest holds, and what to do about it."""
    below = [path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{FILE_NAME}")]
    if below:
        return "shards in a folder below", f"name {' or '.join(map(str, sorted(below)))}"
    if (folder.parent / FILE_NAME).is_file():
        return "shards in the folder above", f"name {folder.parent}"
    tars = [path.name for path in folder.glob("*.tar")]
    if tars and not any(OFFICIAL_TAR.match(name) for name in tars):
        return (
            f"{counted(len(tars), 'tar')} and no {FILE_NAME}",
            f"python shard_imagenet.py index --shards {quoted(folder)}",
        )
    if not any(folder.glob("*")):
        return "an empty folder", _pack_command("DIR", quoted(folder))
    fix = f"to pack what is there: {_pack_command(quoted(folder), 'SHARDS')}"
    beside = sorted(path.parent for path in folder.parent.glob(f"*/{FILE_NAME}"))
    if beside:
        fix += f"; shards are in {' and '.join(map(str, beside))}"
    return f"other files, and no {FILE_NAME}", fix


def _encode_columns(split: Split) -> bytes:
    """Return the per-sample columns as an uncompressed `.npz` of reproducible bytes."""
    buffer = io.BytesIO()
    columns: dict[str, NDArray[Any]] = dict(
        zip(_COLUMNS, (split.offsets, split.lengths, split.labels, split.keys), strict=True)
    )
    optional = {} if split.crc32s is None else {_OPTIONAL_COLUMN: split.crc32s}
    np.savez(buffer, allow_pickle=False, **columns, **optional)
    return buffer.getvalue()


def _read_split(folder: Path, entry: dict[str, Any]) -> Split:
    """Read one split's columns and check them against the hash in the JSON."""
    path = folder / Path(entry["columns"]).name
    fix = "restore the file, or rebuild the manifest: python shard_imagenet.py index --shards DIR"
    if not path.is_file() or sha256_of_file(path) != entry["columns_sha256"]:
        raise InputError(
            f"{path} does not match {FILE_NAME}",
            expected=f"sha256 {entry['columns_sha256']}",
            found="another sha256" if path.is_file() else "no such file",
            fix=fix,
        )
    try:
        with np.load(path, allow_pickle=False) as columns:
            offsets, lengths, labels, keys = (columns[name] for name in _COLUMNS)
            crc32s = columns.get(_OPTIONAL_COLUMN)
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read", found=str(error), fix=fix) from None
    shards = tuple(Shard(**shard) for shard in entry["shards"])
    return Split(shards, offsets, lengths, labels, keys, crc32s)
