"""Verification: do the shards still hold, to the byte, what the manifest says?

Of a shard that a subset lists in part, only the listed samples are checked one by one; its sha256
covers the others.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from imagenet_rn50.classes import FILE_NAME as CLASSES_NAME
from imagenet_rn50.classes import WNID, Classes
from imagenet_rn50.shards import manifest as manifests
from imagenet_rn50.shards.manifest import INFO_NAME, Manifest, Shard, Split, timm_info
from imagenet_rn50.shards.store import CachedShards, ShardStore, open_shards, resolve_location
from imagenet_rn50.shards.tar import (
    Buffer,
    TarError,
    TarSample,
    image_of,
    mapped,
    samples_in,
)
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_json, sha256_of_file
from imagenet_rn50.utils.logging import progress_bar
from imagenet_rn50.utils.storage import (
    DEFAULT_RETRY_POLICY,
    MissingFileError,
    RemoteFolder,
    RetryPolicy,
    UnusableFileError,
    is_address,
)


@dataclass(frozen=True)
class _Task:
    """One shard to check.

    Args:
        store: Where the shards are.
        manifest: Their manifest.
        split: The split of the shard.
        number: The shard's number in it.
        wnids: The wnid of each class; None, or none at all, where it is not known.
        label_key: The field of the samples' JSON that alone holds the label; None for all labels.
        names_of: What that field may call each class.
    """

    store: ShardStore
    manifest: Manifest
    split: Split
    number: int
    wnids: list[str | None]
    label_key: str | None
    names_of: list[set[str]]


class Finding(NamedTuple):
    """Something that is wrong.

    Args:
        file: The name of the file.
        problem: What is wrong with it, and with which sample.
    """

    file: str
    problem: str

    def __str__(self) -> str:
        """Return `file: problem`."""
        return f"{self.file}: {self.problem}"


def verify(
    shards: str | Path,
    *,
    quick: bool = False,
    cache: Path | None = None,
    num_threads: int = 1,
    show_progress: bool = False,
    retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY,
) -> list[Finding]:
    """Compare shards with their manifest.

    Args:
        shards: Folder of the manifest: a path or an address.
        quick: Check names and sizes only, not contents. Remote shards are not downloaded; their
            sha256 is checked where the storage knows it, as the Hub does.
        cache: Where a remote manifest and remote shards are kept on this machine.
        num_threads: How many shards are read at a time.
        show_progress: Whether to show a progress bar.
        retry_policy: How often downloads are retried.

    Returns:
        All problems found; empty if the shards are intact.

    Raises:
        InputError: When there is no manifest to compare with, no cache is given for what must be
            downloaded, or remote shards cannot be read at all.
    """
    is_remote = is_address(shards)
    if not is_remote and not (Path(shards) / manifests.FILE_NAME).is_file():
        Manifest.load(Path(shards))  # says what is missing
    folder, store = _open(shards, quick, cache, retry_policy)
    try:
        manifest = Manifest.load(folder)
    except InputError as error:
        return [Finding(manifests.FILE_NAME, str(error))]
    findings = [*_beside(folder, manifest)]
    if manifest.location is None and not is_remote:
        findings = [*_surplus(folder, manifest), *findings]
    label_key = _label_key(manifest.options)
    wnids, names_of = _wnids(folder, manifest), _names_of(folder, manifest)
    tasks = [
        _Task(store, manifest, split, number, wnids, label_key, names_of)
        for split in manifest.splits.values()
        for number in range(len(split.shards))
    ]
    with (
        ThreadPoolExecutor(num_threads) as pool,
        progress_bar(
            total=len(tasks),
            description="verifying",
            unit="shard",
            enabled=show_progress and not quick,
        ) as bar,
    ):
        check = _check_size if quick else _check_content
        for found in pool.map(check, tasks):
            findings += found
            bar.update()
    return findings


def _open(
    shards: str | Path, quick: bool, cache: Path | None, retry_policy: RetryPolicy
) -> tuple[Path, ShardStore]:
    """Return the local folder of the manifest, and the shards."""
    if quick and not is_address(shards):  # nothing is downloaded, so no cache is needed
        folder = Path(shards)
        location = resolve_location(str(shards), Manifest.location_of(folder))
        if is_address(location):
            remote = RemoteFolder(location, retry_policy)
            return folder, CachedShards(remote, cache or folder, 0, folder)
    store = open_shards(shards, cache=cache, retry_policy=retry_policy)
    return store.folder, store


def _surplus(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    """Find tars that the manifest does not list; other readers would take them for shards."""
    known = {shard.name for split in manifest.splits.values() for shard in split.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in known:
            yield Finding(path.name, "is not in the manifest")


def _beside(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    """Compare `classes.json` and timm's `_info.json` with the manifest, where there are any."""
    classes = folder / CLASSES_NAME
    if manifest.classes_sha256 is not None:
        if not classes.is_file():
            yield Finding(CLASSES_NAME, "is missing")
        elif sha256_of_file(classes) != manifest.classes_sha256:
            yield Finding(CLASSES_NAME, "has changed: class names may differ")
    if not (folder / INFO_NAME).is_file():
        return
    try:
        content = read_json(folder / INFO_NAME)
    except InputError as error:
        yield Finding(INFO_NAME, str(error))
        return
    if content != timm_info(manifest):
        yield Finding(INFO_NAME, "contradicts the manifest")


def _wnids(folder: Path, manifest: Manifest) -> list[str | None]:
    """Return the wnid of each class index; None where `classes.json` has something else."""
    path = folder / CLASSES_NAME
    if not path.is_file() or sha256_of_file(path) != manifest.classes_sha256:
        return []
    return [wnid if WNID.fullmatch(wnid) else None for wnid in Classes.load(folder).wnids]


def _names_of(folder: Path, manifest: Manifest) -> list[set[str]]:
    """Return the wnid and the names of each class."""
    path = folder / CLASSES_NAME
    if not path.is_file() or sha256_of_file(path) != manifest.classes_sha256:
        return []
    classes = Classes.load(folder)
    return [set(names) for names in zip(classes.wnids, classes.names, classes.labels, strict=True)]


def _label_key(options: dict[str, Any]) -> str | None:
    """Return the JSON field that the labels were read from, of a subset that of its parent."""
    while "subset" in options:
        options = options["parent"]["options"]
    return options.get("label_key")


def _check_size(task: _Task) -> list[Finding]:
    """Compare a shard's size with the manifest's; of a remote one, the storage's sha256, too."""
    shard = task.split.shards[task.number]
    if isinstance(task.store, CachedShards):
        return _check_info(task.store, shard, needs_size=True)
    try:
        size = task.store.fetch(shard).stat().st_size
    except InputError:
        return [Finding(shard.name, "is missing")]
    if size != shard.num_bytes:
        return [Finding(shard.name, f"has {size} bytes instead of {shard.num_bytes}")]
    return []


def _check_info(store: CachedShards, shard: Shard, *, needs_size: bool) -> list[Finding]:
    """Compare a remote shard with the manifest by what the storage says about it.

    Args:
        store: The remote shards.
        shard: The shard.
        needs_size: Whether it is a finding if the storage does not tell the size.

    Raises:
        InputError: When the storage cannot be asked.
    """
    try:
        info = store.info(shard)
    except MissingFileError:
        return [Finding(shard.name, f"is missing at {store.remote.public}")]
    if info.num_bytes is None and needs_size:
        return [Finding(shard.name, "cannot be compared: the server does not tell its size")]
    if info.num_bytes not in {None, shard.num_bytes}:
        return [Finding(shard.name, f"has {info.num_bytes} bytes instead of {shard.num_bytes}")]
    if info.sha256 not in {None, shard.sha256}:
        return [Finding(shard.name, f"has the sha256 {info.sha256} instead of {shard.sha256}")]
    return []


def _check_content(task: _Task) -> list[Finding]:
    """Compare a shard's size, hash, structure, images and labels with the manifest's."""
    shard = task.split.shards[task.number]
    if isinstance(task.store, CachedShards):
        findings = _check_info(task.store, shard, needs_size=False)
        if findings:
            return findings
    else:
        findings = _check_size(task)
    try:
        path = _fetch_intact(task.store, shard)
    except UnusableFileError as error:
        return [Finding(shard.name, str(error))]
    except InputError:
        if isinstance(task.store, CachedShards):
            raise
        return findings
    with mapped(path) as buffer:
        is_same = hashlib.sha256(buffer).hexdigest() == shard.sha256
        problems = _structure_problems(buffer, task)
        if not is_same:
            problems = [*_image_problems(buffer, task.split, task.number), *problems]
            problems = problems or ["sha256 differs outside of images and labels"]
    return findings + [Finding(shard.name, problem) for problem in problems]


def _fetch_intact(store: ShardStore, shard: Shard) -> Path:
    """Return a shard's file; a damaged copy in a cache is downloaded again.

    Raises:
        InputError: When it is missing or cannot be downloaded.
    """
    path = store.fetch(shard)
    if isinstance(store, CachedShards) and sha256_of_file(path) != shard.sha256:
        with path.open("rb") as file:
            store.discard(shard, file.fileno())
        path = store.fetch(shard)
    return path


def _structure_problems(buffer: Buffer, task: _Task) -> list[str]:
    """Walk through the tar and compare its samples with the manifest's, one by one."""
    split = task.split
    begin, end = (int(split.shard_starts[task.number + i]) for i in (0, 1))
    expected = {split.key_of(index): index for index in range(begin, end)}
    problems: list[str] = []
    try:
        for sample in samples_in(buffer):
            index = expected.pop(sample.key, None)
            if index is not None:
                problems += _sample_problems(buffer, sample, index, task)
            elif not task.manifest.is_subset:
                problems.append(f"sample {sample.key!r} is not in the manifest or occurs twice")
    except TarError as error:
        problems.append(str(error))
    return problems + [f"sample {key!r} is missing" for key in expected]


def _sample_problems(buffer: Buffer, sample: TarSample, index: int, task: _Task) -> Iterator[str]:
    """Compare the offset of a sample's image, and all labels that it has, with the manifest's."""
    split, manifest = task.split, task.manifest
    image = image_of(sample)
    place = int(split.offsets[index]), int(split.lengths[index])
    if image is None or (image.offset, image.size) != place:
        yield f"sample {sample.key!r} has its image at another offset"
    label = int(split.labels[index])
    wnid = task.wnids[label] if label < len(task.wnids) else None
    number = label if manifest.source_labels is None else manifest.source_labels[label]
    for where, value in sample.labels(buffer, task.label_key) or [("any member", None)]:
        right = (wnid or value) if isinstance(value, str) else number
        if task.label_key is not None and label < len(task.names_of):
            names = task.names_of[label]
            right = value if value in names else (number if isinstance(value, int) else min(names))
        if value != right:
            yield f"sample {sample.key!r} has the label {value} in {where} instead of {right}"
            return


def _image_problems(buffer: Buffer, split: Split, number: int) -> list[str]:
    """Name the samples whose images have changed, where the manifest has their checksums."""
    if split.crc32s is None:
        return ["sha256 differs"]
    problems = []
    for index in range(int(split.shard_starts[number]), int(split.shard_starts[number + 1])):
        offset, length = int(split.offsets[index]), int(split.lengths[index])
        if zlib.crc32(buffer[offset : offset + length]) != split.crc32s[index]:
            problems.append(f"sample {split.key_of(index)!r}: its image has changed")
    return problems
