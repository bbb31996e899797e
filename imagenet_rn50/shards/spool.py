"""Spreads parquet pictures over one temporary file a shard, so that parquet is read only once.

A parquet file gives up its pictures by row group, many at a time, and each shard wants a few of
nearly every group: read shard by shard, all files would be read over and over.
Each temporary file goes when its shard is finished, so all together never take more space than the
shards will.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imagenet_rn50.console import progress_bar
from imagenet_rn50.shards.plan import ShardTask
from imagenet_rn50.shards.sources.parquet import row_groups

SUFFIX = ".spool"


def spread(tasks: Sequence[ShardTask], folder: Path) -> list[ShardTask]:
    """Reads every parquet file once and appends each picture to its shard's file.

    Args:
        tasks: The shards to make.
        folder: Where the temporary files shall stand.

    Returns:
        The same tasks, each with the places of its pictures in its temporary file.
    """
    remove_all(folder)
    # File -> row -> (number of the task, number of the picture in it).
    wanted: dict[str, dict[int, tuple[int, int]]] = defaultdict(dict)
    for number, task in enumerate(tasks):
        for position, picture in enumerate(task.pictures):
            wanted[picture.path][picture.offset] = number, position
    places = [[(0, 0)] * len(task.pictures) for task in tasks]
    ends = [0] * len(tasks)
    total = sum(len(task.pictures) for task in tasks)
    with progress_bar(total=total, description="reading") as bar:
        for path, rows in sorted(wanted.items()):
            for begin, contents in row_groups(Path(tasks[0].root) / path):
                for row, content in enumerate(contents, start=begin):
                    if row not in rows:
                        continue
                    number, position = rows[row]
                    _append(spool_path(folder, tasks[number]), content)
                    places[number][position] = ends[number], len(content)
                    ends[number] += len(content)
                    bar.update()
    return [
        replace(task, spool=str(spool_path(folder, task)), places=tuple(found))
        for task, found in zip(tasks, places, strict=True)
    ]


def spool_path(folder: Path, task: ShardTask) -> Path:
    """Returns the name of a shard's temporary file."""
    return folder / f"{task.name}{SUFFIX}"


def remove_all(folder: Path) -> None:
    """Removes the temporary files of a run that was cut short."""
    for path in folder.glob(f"*{SUFFIX}"):
        path.unlink(missing_ok=True)


def _append(path: Path, content: bytes) -> None:
    """Appends to a file; a thousand files are too many to keep open."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        rest = memoryview(content)
        while rest:  # a nearly full disk takes less than it is given
            rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)
