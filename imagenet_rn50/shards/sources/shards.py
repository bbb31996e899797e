"""Shards as a source: whatever a manifest lists, wherever its shards are; or WebDataset shards.

Packing a view anew makes real shards of a subset, and gives shards made by others restart markers,
another size or another layout. Only the listed samples are packed, with their keys and the class
indices of the view.

Shards on this machine are read in place. Remote ones are downloaded one after the other, and leave
the cache again unless they were there before.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_rn50.classes import FILE_NAME as CLASSES_NAME
from imagenet_rn50.classes import Classes
from imagenet_rn50.shards import manifest as manifests
from imagenet_rn50.shards.audit import DATA_NAME, REPORT_NAME, read_audit
from imagenet_rn50.shards.index import IndexOptions, index
from imagenet_rn50.shards.labels import MAPPING
from imagenet_rn50.shards.manifest import INFO_NAME, VALIDATION, Manifest, Shard, Split
from imagenet_rn50.shards.plan import STREAM, permutation
from imagenet_rn50.shards.sources.base import Source, SourceImage, Unpacked
from imagenet_rn50.shards.sources.folders import SPLIT_FOLDERS
from imagenet_rn50.shards.sources.scan import others_beside
from imagenet_rn50.shards.store import CachedShards, LocalShards, open_shard, open_shards
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import sha256_of_file
from imagenet_rn50.utils.formatting import quoted
from imagenet_rn50.utils.storage import is_address


def is_shards(root: Path) -> bool:
    """Return whether `root` holds a manifest, or tars that are not ImageNet's official ones."""
    if is_manifest(root):
        return True
    folders = [root, *(root / name for names in SPLIT_FOLDERS.values() for name in names)]
    tars = (path.name for folder in folders for path in folder.glob("[!.]*.tar"))
    return any(not manifests.OFFICIAL_TAR.match(name) for name in tars)


def is_manifest(root: Path) -> bool:
    """Return whether `root` holds a manifest."""
    return (root / manifests.FILE_NAME).is_file()


def read_shards(root: Path | str, train_only: bool = False, *, cache: Path | None = None) -> Source:
    """List the samples of a manifest, or of WebDataset shards on this machine without one.

    Args:
        root: Folder of the manifest, a path or an address; or of the shards, a path.
        train_only: Whether validation is left out.
        cache: Where remote shards are kept on this machine.

    Raises:
        InputError: When there are no shards, their classes are not known, a shard is missing or has
            another size, or no cache is given for remote shards.
    """
    if is_address(root) or is_manifest(Path(root)):
        return _read_manifest(root, root, train_only, cache)
    with TemporaryDirectory(prefix="index-") as folder:
        _index(Path(root), Path(folder))
        source = _read_manifest(folder, root, train_only, None)
        skipped = [
            Unpacked(e["split"], f"{e['path']}: {e['key']}", e["reason"], is_error=True)
            for e in read_audit(Path(folder))["skipped"]
            if e["split"] in source.splits
        ]
        shards = [
            shard for split in Manifest.load(Path(folder)).splits.values() for shard in split.shards
        ]
    taken = {PurePosixPath(shard.name).parts[0] for shard in shards}
    others = others_beside(Path(root), Path(root), taken | {INFO_NAME, CLASSES_NAME, MAPPING})
    return replace(source, options={}, unpacked=source.unpacked + skipped + others)


def _index(root: Path, folder: Path) -> None:
    """Write a manifest of shards that others have made into a temporary folder.

    Raises:
        InputError: When they cannot be indexed.
    """
    try:
        # What cannot be used is for `pack` to refuse or skip.
        options = IndexOptions(for_packing=True, on_corrupt="skip")
        index(root, options, out=folder, num_threads=os.cpu_count() or 1)
    except InputError as error:
        raise InputError(
            f"{error}\n  (shards without a manifest are indexed before they are packed; to give "
            f"options, index them yourself: python shard_imagenet.py index --shards {quoted(root)} "
            "--out INDEX, then pack --source INDEX)"
        ) from None


def _read_manifest(
    folder: Path | str, root: Path | str, train_only: bool, cache: Path | None
) -> Source:
    """List the samples of the manifest in `folder`; messages name `root`."""
    store = open_shards(folder, cache=cache)
    manifest = Manifest.load(store.folder)
    classes = _classes(manifest, store.folder, root)
    unpacked: list[Unpacked] = []
    chosen = dict(manifest.splits)
    if train_only and (left_out := chosen.pop(VALIDATION, None)):
        unpacked.append(Unpacked("", f"{VALIDATION}/", "--train-only", left_out.num_samples))
    place: Path | str
    if isinstance(store, CachedShards):
        place = store.remote.public
    else:
        assert isinstance(store, LocalShards)
        place = store.location or store.folder
        _require_whole(store, chosen)
        unpacked += _others(manifest, store.folder, place)
    options: dict[str, Any] = {
        "parent": {
            "dataset": manifest.dataset,
            "fingerprint": Manifest.fingerprint_of(store.folder),
            "options": manifest.options,
        }
    }
    if VALIDATION in chosen and (holdout := manifest.options.get("holdout")):
        options["holdout"] = holdout
    return Source(
        root=place,
        layout="shards",
        classes=classes,
        splits={name: _images(manifest, name) for name in chosen},
        unpacked=unpacked,
        notes=_notes(manifest, chosen),
        name=manifest.dataset,
        options=options,
        fingerprint=options["parent"]["fingerprint"],
        reader=RemoteShardReader(store, _shards_of(chosen))
        if isinstance(store, CachedShards)
        else None,
    )


@dataclass(frozen=True)
class RemoteShardReader:
    """Read the images of remote shards, one shard after the other.

    Args:
        store: The remote shards.
        shards: By name, a split that has the shard, and its number there.
    """

    store: CachedShards
    shards: Mapping[str, tuple[Split, int]]

    def read(self, images: Mapping[str, Sequence[SourceImage]]) -> Iterator[tuple[str, int, bytes]]:
        """Read each shard once; see `ImageReader`."""
        for path, rows in images.items():
            split, number = self.shards[path]
            shard = split.shards[number]
            was_there = self.store.holds(shard)
            descriptor = open_shard(self.store, split, number)
            try:
                for index, image in enumerate(rows):
                    content = os.pread(descriptor, image.length, image.offset)
                    if was_there and image.crc32 not in {None, zlib.crc32(content)}:
                        # Maybe damaged since it was downloaded: once more, from the original.
                        self.store.discard(shard, descriptor)
                        os.close(descriptor)
                        was_there, descriptor = False, open_shard(self.store, split, number)
                        content = os.pread(descriptor, image.length, image.offset)
                    yield path, index, content
                if not was_there:
                    self.store.discard(shard, descriptor)
            finally:
                os.close(descriptor)


def _shards_of(splits: Mapping[str, Split]) -> dict[str, tuple[Split, int]]:
    """Return a split and a number for the name of each shard."""
    return {
        shard.name: (split, number)
        for split in splits.values()
        for number, shard in enumerate(split.shards)
    }


def _classes(manifest: Manifest, folder: Path, root: Path | str) -> Classes:
    """Return the classes of the manifest.

    Raises:
        InputError: When they are missing, have changed, or lack a class index of the samples.
    """
    path = folder / CLASSES_NAME
    if not path.is_file():
        raise InputError(
            f"the classes of {root} are not known",
            expected=f"{CLASSES_NAME} beside its manifest",
            fix="index the shards with a list of their classes, and pack the index: python "
            f"shard_imagenet.py index --shards {quoted(root)} --out INDEX --mapping FILE",
        )
    if manifest.classes_sha256 not in {None, sha256_of_file(path)}:
        raise InputError(
            f"{path} is not the one that the manifest was written with",
            expected=f"sha256 {manifest.classes_sha256}",
            found="another sha256",
            fix="restore it: packing would give images other class names",
        )
    classes = Classes.load(folder)
    for name, split in manifest.splits.items():
        if (largest := int(split.labels.max(initial=0))) >= len(classes):
            raise InputError(
                f"{name} has the class index {largest}, which {path} lacks",
                expected=f"class indices from 0 to {len(classes) - 1}",
            )
    return classes


def _images(manifest: Manifest, name: str) -> list[SourceImage]:
    """List the samples of a split in the order in which their first source would list them.

    Packing permutes; shards that were packed whole are put back into their order, so packing them
    anew with the same seed gives the same order again. Other views are sorted by class and key, as
    class folders are. So it never matters which shard of the source a sample is in.
    """
    split = manifest.split(name)
    shards = np.repeat(np.arange(len(split.shards)), split.shard_sizes).tolist()
    names = [shard.name for shard in split.shards]
    crc32s = [None] * split.num_samples if split.crc32s is None else split.crc32s.tolist()
    columns = (column.tolist() for column in (split.labels, split.offsets, split.lengths))
    images = [
        SourceImage(key.decode("utf-8"), label, names[shard], offset, length, crc32)
        for key, label, offset, length, shard, crc32 in zip(
            split.keys.tolist(), *columns, shards, crc32s, strict=True
        )
    ]
    return [images[index] for index in _order(manifest, name)]


def _order(manifest: Manifest, name: str) -> NDArray[np.intp]:
    """Return the sample indices in the order of `_images`."""
    split, seed = manifest.split(name), manifest.options.get("seed")
    if seed is None or manifest.is_subset:
        return np.lexsort((split.keys, split.labels))
    return np.argsort(permutation(split.num_samples, seed=seed, stream=STREAM[name]))


def _require_whole(store: LocalShards, splits: Mapping[str, Split]) -> None:
    """Raise an error if a shard on this machine is missing or has another size.

    Their contents are compared when they are read, image by image.
    """
    for shard in {
        shard.name: shard for split in splits.values() for shard in split.shards
    }.values():
        path = store.fetch(shard)
        if (size := path.stat().st_size) != shard.num_bytes:
            raise InputError(
                f"{path} is not the shard that the manifest describes",
                expected=f"{shard.num_bytes} bytes",
                found=f"{size} bytes",
                fix=f"{store.repair}; if it was changed on purpose, index it again",
            )


def _others(manifest: Manifest, folder: Path, location: Path) -> list[Unpacked]:
    """Name what lies beside a manifest and its shards on this machine, and is not packed."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    columns = {f"manifest-{name}.npz" for name in manifest.splits}
    taken = columns | {manifests.FILE_NAME, CLASSES_NAME, INFO_NAME, DATA_NAME, REPORT_NAME}
    if location == folder:
        taken |= {PurePosixPath(shard.name).parts[0] for shard in shards}
    found = others_beside(folder, folder, taken)
    if manifest.is_subset:
        return found  # its shards' folder holds shards of its parent
    return found + _unlisted(shards, location, {entry.path for entry in found})


def _unlisted(shards: Sequence[Shard], location: Path, known: set[str]) -> list[Unpacked]:
    """Name tars that lie among the shards, and are not in the manifest."""
    listed = {shard.name for shard in shards} | known
    folders = sorted({(location / shard.name).parent for shard in shards})
    paths = [path for folder in folders for path in sorted(folder.glob("*.tar"))]
    names = [path.relative_to(location).as_posix() for path in paths]
    return [Unpacked("", n, "a tar that is not in the manifest") for n in names if n not in listed]


def _notes(manifest: Manifest, splits: Mapping[str, Split]) -> list[str]:
    """Return what to know of shards that are packed anew."""
    notes = []
    options = manifest.pack_options
    if "subset" in manifest.options:
        notes.append(
            "the manifest lists part of the samples of its shards; the others are not packed"
        )
    if num_skipped := options.get("num_skipped"):
        notes.append(f"{num_skipped:,} samples of the shards cannot be used and are left out")
    if options.get("metadata", True):
        notes.append(
            "only images and labels are packed: other members of the samples, such as .json and "
            ".txt, are not"
        )
    if any(split.crc32s is None for split in splits.values()):
        notes.append(
            "the manifest has no checksums of the images: damage shows only where an image cannot "
            "be decoded"
        )
    return notes
