"""Packing: a source becomes shards, a manifest, and what other readers need beside them.

The manifest is written last. As long as it is missing, `.packing` in the same folder holds what the
next run needs to go on.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenet_rn50.console import progress_bar, say
from imagenet_rn50.errors import InputError
from imagenet_rn50.files import require_free_space
from imagenet_rn50.shards import manifest as manifests
from imagenet_rn50.shards.finishing import finish
from imagenet_rn50.shards.jpegtran import require_installed
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.options import PackOptions
from imagenet_rn50.shards.plan import Plan, make_plan, with_dataset
from imagenet_rn50.shards.shard import ShardRecord
from imagenet_rn50.shards.sources.base import Source
from imagenet_rn50.shards.sources.scan import unusable
from imagenet_rn50.shards.space import space_needed, space_taken
from imagenet_rn50.shards.state import FOLDER as STATE_FOLDER
from imagenet_rn50.shards.state import PackingState, describe_difference
from imagenet_rn50.shards.verify import verify
from imagenet_rn50.shards.workers import make_shards


@dataclass(frozen=True)
class Packed:
    """How a packing ended.

    Args:
        manifest: What stands in the output folder.
        num_made: How many shards this run made.
        num_kept: How many an earlier run had made.
    """

    manifest: Manifest
    num_made: int
    num_kept: int


def pack(source: Source, out: Path, options: PackOptions, num_workers: int = 1) -> Packed:
    """Packs a source into shards; goes on where an earlier run was cut short.

    Args:
        source: The pictures.
        out: The folder for shards and manifest; made when missing.
        options: How to pack.
        num_workers: How many processes; has no influence on any byte.

    Returns:
        What stands in `out` now.

    Raises:
        InputError: When `out` holds something else, the disk is too small, or a picture is bad.
    """
    if options.restart_blocks is not None:
        require_installed()
    options = with_dataset(options, source)
    if options.on_bad == "stop":
        _require_usable(source)
    plan = make_plan(source, options)
    identity = _identity(source, plan, options)
    if (out / manifests.FILE_NAME).is_file():
        return _already_packed(out, identity)
    _require_usable_folder(out, plan)
    require_free_space(out, space_needed(plan) - space_taken(plan, out), "packing")
    state = PackingState(out)
    with state.locked(), _explained_end(plan, out):
        state.adopt(identity)
        state.remove_leftovers()
        made, num_kept = _make_all(plan, out, state, num_workers)
        records = [made[task.name] for task in plan.tasks]
        _require_all_classes(source, records)
        manifest = finish(
            records,
            out,
            dataset=str(options.dataset),
            options=identity,
            classes=source.classes,
            source=source,
        )
        state.forget()
    return Packed(manifest, num_made=len(plan.tasks) - num_kept, num_kept=num_kept)


def _identity(source: Source, plan: Plan, options: PackOptions) -> dict[str, Any]:
    """Returns what decides the bytes of all shards.

    What to do with bad pictures is not among it: a shard without any is the same either way.
    """
    chosen = {name: value for name, value in options.as_dict().items() if name != "on_bad"}
    if not options.train_only:  # as in manifests that were written before there was the option
        del chosen["train_only"]
    return {**chosen, "layout": source.layout, "source_sha256": plan.source_sha256}


def _require_usable(source: Source) -> None:
    """Stops before packing where files are found that are no images, and lists them.

    Raises:
        InputError: Naming the first of them.
    """
    is_folders = source.layout in {"kaggle", "imagefolder"}
    pictures = [picture for split in source.splits.values() for picture in split]
    if bad := unusable(source.root, pictures if is_folders else [], source.unpacked):
        raise InputError(
            f"files of the source {source.root} cannot be packed: {len(bad)}",
            expected="images in the folders of classes, and nothing else",
            found="; ".join(bad[:5]) + "; ..." * (len(bad) > 5),
            fix="move them elsewhere, or leave them out: --on-bad skip",
        )


def _require_all_classes(source: Source, records: Sequence[ShardRecord]) -> None:
    """Stops when a class has lost all its images of a split to `--on-bad skip`.

    Raises:
        InputError: Naming the first such class.
    """
    for split, pictures in source.splits.items():
        packed = {row.label for record in records if record.split == split for row in record.rows}
        lost = sorted({picture.label for picture in pictures} - packed)
        if lost:
            wnids = [source.classes.wnids[label] for label in lost]
            left_out = [r for record in records if record.split == split for r in record.left_out]
            reasons = [remark for remark in left_out if remark.label == lost[0]]
            raise InputError(
                f"none of the {split} images of the class {wnids[0]} can be used",
                expected=f"an image of each class, even with {len(left_out)} images left out",
                found=f"{len(wnids)} classes without any: {', '.join(wnids[:5])}; "
                f"{reasons[0].path}: {reasons[0].reason}",
                fix="replace their files, or take the classes out of the source, and give another "
                "--out",
            )


def _already_packed(out: Path, identity: dict[str, Any]) -> Packed:
    """Checks a finished output against what is asked for; makes nothing."""
    manifest = Manifest.load(out)
    if manifest.options != identity:
        raise InputError(
            f"{out} holds the shards of another packing",
            expected="the same source and options as before",
            found=describe_difference(manifest.options, identity),
            fix="give another --out, or delete that folder",
        )
    findings = verify(out, quick=True)
    if findings:
        raise InputError(
            f"{out} was packed before, but is no longer whole",
            expected="the files that its manifest describes",
            found="; ".join(str(finding) for finding in findings[:3]),
            fix=f"restore them, or delete {out / manifests.FILE_NAME} and its shards to pack anew",
        )
    if (out / STATE_FOLDER).is_dir():  # the last run was killed after its last step but one
        PackingState(out).forget()
    num_shards = sum(len(split.shards) for split in manifest.splits.values())
    return Packed(manifest, num_made=0, num_kept=num_shards)


def _require_usable_folder(out: Path, plan: Plan) -> None:
    """Refuses to write over shards that nobody remembers."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder", found="a file", fix="give another --out")
    if (out / STATE_FOLDER).is_dir():
        return
    if taken := [task.name for task in plan.tasks if (out / task.name).exists()]:
        raise InputError(
            f"{out} holds {taken[0]} already, without a manifest",
            expected="an empty folder, or one that an earlier run of pack began",
            fix=f"give another --out, or index them: python shard_imagenet.py index --shards {out}",
        )


def _make_all(
    plan: Plan, out: Path, state: PackingState, num_workers: int
) -> tuple[dict[str, ShardRecord], int]:
    """Makes the shards that are not finished yet.

    Returns:
        The record of every shard by its name, and how many of them were kept.
    """
    records = state.all_finished(plan.tasks)
    num_kept = len(records)
    if num_kept:
        say(f"{num_kept} of {len(plan.tasks)} shards were finished before and are kept")
    missing = [task for task in plan.tasks if task.name not in records]
    num_pictures = sum(len(task.pictures) for task in plan.tasks)
    num_done = num_pictures - sum(len(task.pictures) for task in missing)
    ready = state.spread(missing)
    with progress_bar(total=num_pictures, initial=num_done, description="packing") as bar:
        for record in make_shards(ready, out, num_workers, bar):
            state.save(record)
            records[record.shard.name] = record
    return records, num_kept


@contextmanager
def _explained_end(plan: Plan, out: Path) -> Iterator[None]:
    """Tells whoever presses Ctrl-C how to go on, and what can be done about a full disk."""
    try:
        yield
    except KeyboardInterrupt:
        say(
            f"Stopped. {_num_finished(plan, out)} of {len(plan.tasks)} shards are finished and "
            f"kept in {out}; the same command goes on from there."
        )
        raise
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise InputError(
            f"the disk is full: {error.strerror} while packing into {out}",
            expected="space for all shards",
            found=f"space for {_num_finished(plan, out)}, which are finished and kept",
            fix="free some space and give the same command again",
        ) from None


def _num_finished(plan: Plan, out: Path) -> int:
    """Returns how many shards stand there: they have their names only when they are whole."""
    return sum((out / task.name).is_file() for task in plan.tasks)
