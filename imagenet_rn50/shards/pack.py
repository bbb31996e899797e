"""Packing: turn a source into shards, a manifest, and the files that other readers need.

`pack` makes the plan, checks the free space, makes the shards (see `writer`) and calls
`write_manifest`, which `index` calls too. The manifest is written last: if it exists, all other
files do. Until then, `.packing` in the same folder holds what the next run needs to resume.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_rn50.classes import FILE_NAME as CLASSES_NAME
from imagenet_rn50.classes import Classes
from imagenet_rn50.shards import manifest as manifests
from imagenet_rn50.shards.audit import audit_of, write_audit
from imagenet_rn50.shards.images import BadImageError, prepare
from imagenet_rn50.shards.lossless import require_installed, shut_down, why_slow
from imagenet_rn50.shards.manifest import INFO_NAME, TRAIN, VALIDATION, Manifest, Split, timm_info
from imagenet_rn50.shards.plan import PackOptions, Plan, ShardTask, make_plan, with_dataset
from imagenet_rn50.shards.sources.base import Source
from imagenet_rn50.shards.sources.folders import split_folders
from imagenet_rn50.shards.sources.reading import read_images
from imagenet_rn50.shards.sources.scan import unusable
from imagenet_rn50.shards.store import resolve_location
from imagenet_rn50.shards.verify import verify
from imagenet_rn50.shards.writer import FOLDER as STATE_FOLDER
from imagenet_rn50.shards.writer import PackingState, ShardRecord, describe_difference, make_shards
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import require_free_space, sha256_of_file, write_json
from imagenet_rn50.utils.formatting import quoted
from imagenet_rn50.utils.logging import logger, progress_bar
from imagenet_rn50.utils.storage import is_address

# What tar headers, labels and restart markers add to an image, at most, in bytes and as a factor.
_OVERHEAD_BYTES = 4096
_RESTART_GROWTH = 1.05

# Images that are encoded to see what is left of them; shards hold them in random order.
_NUM_MEASURED = 32
_MARGIN = 1.3


def space_needed(plan: Plan) -> int:
    """Estimate from above how many bytes the shards will take.

    Args:
        plan: All shards; where images are resized or encoded anew, some are, to see what is left
            of them.

    Raises:
        InputError: When the source has changed since it was listed.
    """
    if not plan.tasks:
        return 0
    options = plan.tasks[0].options
    factor = _RESTART_GROWTH if options.restart_blocks else 1.0
    # With a reader, images are written out as they are before they are packed.
    is_encoded = options.resize is not None or options.recode is not None
    if is_encoded and plan.reader is None:
        factor = min(factor, _MARGIN * _part_left(plan.tasks))
    return sum(
        int(image.length * factor) + _OVERHEAD_BYTES for task in plan.tasks for image in task.images
    )


def space_taken(plan: Plan, out: Path) -> int:
    """Return how many bytes of it earlier runs have written."""
    paths = (out / task.name for task in plan.tasks)
    return sum(path.stat().st_size for path in paths if path.is_file())


def _part_left(tasks: tuple[ShardTask, ...]) -> float:
    """Return what part of their bytes some images still have when they are prepared."""
    measured = tasks[:: -(-len(tasks) // _NUM_MEASURED)]
    num_each = -(-_NUM_MEASURED // len(measured))
    before = after = 0
    for task in measured:
        for _, raw in read_images(replace(task, images=task.images[:num_each])):
            try:
                after += len(prepare(raw, task.options).jpeg)
                before += len(raw)
            except BadImageError:  # which packing will tell of
                continue
    return after / before if before else 1.0


def write_manifest(
    records: Sequence[ShardRecord],
    folder: Path,
    *,
    dataset: str,
    options: dict[str, Any],
    classes: Classes | None,
    source: Source | None = None,
    location: str | None = None,
) -> Manifest:
    """Write the files beside the shards: classes, `_info.json`, audit and, last, the manifest.

    Where the shards are elsewhere, there is no `_info.json`: timm reads shards beside it.

    Args:
        records: What each shard holds, in the order of the shards.
        folder: Where the shards stand, or the manifest of shards elsewhere.
        dataset: The data set's name.
        options: How the shards were made.
        classes: The classes; None when their wnids are not known.
        source: What was packed; None for shards that others packed.
        location: Where the shards are, as `Manifest.location` says it; None for `folder`.

    Returns:
        The manifest, as it was written.
    """
    classes_sha256 = None
    if classes is not None:
        classes.save(folder)
        classes_sha256 = sha256_of_file(folder / CLASSES_NAME)
    manifest = Manifest(dataset, options, _splits_of(records), classes_sha256, location)
    if location is None:
        write_json(folder / INFO_NAME, timm_info(manifest))
    shards = resolve_location(str(folder), location)
    readable = None if is_address(shards) else Path(shards)
    write_audit(audit_of(records, readable, classes, options, source), folder)
    manifest.save(folder)
    return manifest


def _splits_of(records: Sequence[ShardRecord]) -> dict[str, Split]:
    """Collect the records of each split into columns."""
    splits: dict[str, Split] = {}
    for name in (TRAIN, VALIDATION):
        chosen = [record for record in records if record.split == name]
        rows = [row for record in chosen for row in record.rows]
        if chosen:
            splits[name] = Split(
                shards=tuple(record.shard for record in chosen),
                offsets=np.array([row.offset for row in rows], dtype=np.int64),
                lengths=np.array([row.length for row in rows], dtype=np.int32),
                labels=np.array([row.label for row in rows], dtype=np.int32),
                keys=np.array([row.key.encode() for row in rows], dtype=np.bytes_),
                crc32s=np.array([row.crc32 for row in rows], dtype=np.uint32),
            )
    return splits


@dataclass(frozen=True)
class Packed:
    """How a packing ended.

    Args:
        manifest: The manifest of the output folder.
        num_made: How many shards this run made.
        num_kept: How many an earlier run had made.
    """

    manifest: Manifest
    num_made: int
    num_kept: int


def pack(source: Source, out: Path, options: PackOptions, num_workers: int = 1) -> Packed:
    """Pack a source into shards, or resume an interrupted run.

    Args:
        source: The images.
        out: The folder for shards and manifest; made when missing.
        options: How to pack.
        num_workers: How many processes; has no influence on any byte.

    Returns:
        The manifest, and how many shards were made and kept.

    Raises:
        InputError: When `out` holds something else, the disk is too small, or an image is bad.
    """
    if options.restart_blocks is not None:
        require_installed()
    options = with_dataset(options, source)
    _require_beside_classes(source, out)
    _require_apart_from_shards(source, out)
    if options.on_corrupt == "stop":
        _require_usable(source)
    plan = make_plan(source, options)
    identity = _identity(source, plan, options)
    if (out / manifests.FILE_NAME).is_file():
        return _already_packed(out, identity)
    _require_usable_folder(out, plan)
    require_free_space(out, space_needed(plan) - space_taken(plan, out), "packing")
    state = PackingState(out)
    with state.locked(), _explained_end(plan, out), _restart_markers(options):
        state.adopt(identity)
        state.remove_leftovers()
        made, num_kept = _make_all(plan, out, state, num_workers)
        records = [made[task.name] for task in plan.tasks]
        _require_all_classes(source, records)
        manifest = write_manifest(
            records,
            out,
            dataset=str(options.dataset),
            options=identity,
            classes=source.classes,
            source=source,
        )
        state.forget()
    return Packed(manifest, num_made=len(plan.tasks) - num_kept, num_kept=num_kept)


@contextmanager
def _restart_markers(options: PackOptions) -> Iterator[None]:
    """Log if restart markers will be slow, and end the process that makes them."""
    if options.restart_blocks is not None and (reason := why_slow()):
        logger.info(f"restart markers take a jpegtran process for each image: {reason}")
    try:
        yield
    finally:
        shut_down()


def _identity(source: Source, plan: Plan, options: PackOptions) -> dict[str, Any]:
    """Return what decides the bytes of all shards.

    What to do with bad images is not among it: a shard without any is the same either way.
    """
    chosen = {name: value for name, value in options.as_dict().items() if name != "on_corrupt"}
    for name in ("train_only", "recode"):
        if not chosen[name]:  # as in manifests that were written before there was the option
            del chosen[name]
    identity = {**chosen, "layout": source.layout, "source_sha256": plan.source_sha256}
    return identity | source.options


def _require_beside_classes(source: Source, out: Path) -> None:
    """Raise an error if the output folder is among class folders, where it would be a class."""
    if source.layout != "imagefolder":
        return
    root = Path(source.root)
    for folder in split_folders(root).values() or [root]:
        if out.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"--out {out} is in {folder}, where every folder is a class",
                expected="a folder outside",
                fix="give another --out",
            )


def _require_apart_from_shards(source: Source, out: Path) -> None:
    """Raise an error if the output folder is that of the shards that are packed anew."""
    if source.layout == "shards" and source.reader is None:
        if out.resolve() == Path(source.root).resolve():
            raise InputError(
                f"--out {out} is the folder of the shards that are to be packed anew",
                expected="another folder: the source is left as it is",
                fix="give another --out",
            )


def _require_usable(source: Source) -> None:
    """Raise an error before packing if files are found that are no images, and lists them.

    Raises:
        InputError: Naming the first of them.
    """
    is_folders = source.layout in {"kaggle", "imagefolder"}
    images = [image for split in source.splits.values() for image in split]
    if bad := unusable(Path(source.root), images if is_folders else [], source.unpacked):
        raise InputError(
            f"files of the source {source.root} cannot be packed: {len(bad)}",
            expected="images in the folders of classes, and nothing else",
            found="; ".join(bad[:5]) + "; ..." * (len(bad) > 5),
            fix="move them elsewhere, or skip them: --on-corrupt skip",
        )


def _require_all_classes(source: Source, records: Sequence[ShardRecord]) -> None:
    """Raise an error if a class has lost all its images of a split to `--on-corrupt skip`.

    Raises:
        InputError: Naming the first such class.
    """
    for split, images in source.splits.items():
        packed = {row.label for record in records if record.split == split for row in record.rows}
        lost = sorted({image.label for image in images} - packed)
        if lost:
            wnids = [source.classes.wnids[label] for label in lost]
            skipped = [r for record in records if record.split == split for r in record.skipped]
            reasons = [note for note in skipped if note.label == lost[0]]
            raise InputError(
                f"none of the {split} images of the class {wnids[0]} can be used",
                expected=f"an image of each class, even with {len(skipped)} images skipped",
                found=f"{len(wnids)} classes without any: {', '.join(wnids[:5])}; "
                f"{reasons[0].path}: {reasons[0].reason}",
                fix="replace their files, or take the classes out of the source, and give another "
                "--out",
            )


def _already_packed(out: Path, identity: dict[str, Any]) -> Packed:
    """Check a finished output against what is asked for; makes nothing."""
    manifest = Manifest.load(out)
    if manifest.options != identity:
        raise InputError(
            f"{out} holds shards packed from another source or with other options",
            expected="the same source and options as before",
            found=describe_difference(manifest.options, identity),
            fix="give another --out, or delete that folder",
        )
    findings = verify(out, quick=True)
    if findings:
        raise InputError(
            f"{out} was packed before, but is damaged",
            expected="the files that its manifest describes",
            found="; ".join(str(finding) for finding in findings[:3]),
            fix=f"restore them, or delete {out / manifests.FILE_NAME} and its shards to pack anew",
        )
    if (out / STATE_FOLDER).is_dir():  # the last run was killed after its last step but one
        PackingState(out).forget()
    num_shards = sum(len(split.shards) for split in manifest.splits.values())
    return Packed(manifest, num_made=0, num_kept=num_shards)


def _require_usable_folder(out: Path, plan: Plan) -> None:
    """Refuse to overwrite shards without a manifest."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder", found="a file", fix="give another --out")
    if (out / STATE_FOLDER).is_dir():
        return
    if taken := [task.name for task in plan.tasks if (out / task.name).exists()]:
        raise InputError(
            f"{out} holds {taken[0]} already, without a manifest",
            expected="an empty folder, or one that an earlier run of pack began",
            fix="give another --out, or index them: "
            f"python shard_imagenet.py index --shards {quoted(out)}",
        )


def _make_all(
    plan: Plan, out: Path, state: PackingState, num_workers: int
) -> tuple[dict[str, ShardRecord], int]:
    """Make the shards that are not finished yet.

    Returns:
        The record of every shard by its name, and how many of them were kept.
    """
    records = state.all_finished(plan.tasks)
    num_kept = len(records)
    if num_kept:
        logger.info(f"{num_kept} of {len(plan.tasks)} shards were finished before and are kept")
    missing = [task for task in plan.tasks if task.name not in records]
    num_images = sum(len(task.images) for task in plan.tasks)
    num_done = num_images - sum(len(task.images) for task in missing)
    ready = state.spread(missing, plan.reader)
    with progress_bar(total=num_images, initial=num_done, description="packing") as bar:
        for record in make_shards(ready, out, num_workers, bar):
            state.save(record)
            records[record.shard.name] = record
    return records, num_kept


@contextmanager
def _explained_end(plan: Plan, out: Path) -> Iterator[None]:
    """Explain how to resume after Ctrl-C or a full disk."""
    try:
        yield
    except KeyboardInterrupt:
        logger.info(
            f"Stopped. {_num_finished(plan, out)} of {len(plan.tasks)} shards are finished and "
            f"kept in {out}; run the same command again to resume."
        )
        raise
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise InputError(
            f"the disk is full: {error.strerror} while packing into {out}",
            expected="space for all shards",
            found=f"space for {_num_finished(plan, out)}, which are finished and kept",
            fix="free some space and run the same command again",
        ) from None


def _num_finished(plan: Plan, out: Path) -> int:
    """Return how many shards stand there: they have their names only when they are whole."""
    return sum((out / task.name).is_file() for task in plan.tasks)
