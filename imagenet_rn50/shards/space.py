"""How much room packing needs, told before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from imagenet_rn50.shards.images import BadPictureError, prepare
from imagenet_rn50.shards.plan import Plan, ShardTask
from imagenet_rn50.shards.sources.reading import read_pictures

# What tar headers, labels and restart markers add to a picture, at most, in bytes and as a factor.
_OVERHEAD_BYTES = 4096
_RESTART_GROWTH = 1.05

# Pictures that are resized to see what is left of them; shards hold them in random order.
_NUM_MEASURED = 32
_MARGIN = 1.3


def space_needed(plan: Plan) -> int:
    """Estimates from above how many bytes the shards will take.

    Args:
        plan: All shards; where pictures are resized, some are, to see what is left of them.

    Raises:
        InputError: When the source has changed since it was listed.
    """
    if not plan.tasks:
        return 0
    options = plan.tasks[0].options
    factor = _RESTART_GROWTH if options.restart_blocks else 1.0
    # A parquet file's pictures are written out as they are before they are packed.
    if options.resize_rule is not None and plan.tasks[0].layout != "parquet":
        factor = min(factor, _MARGIN * _part_left(plan.tasks))
    return sum(
        int(picture.length * factor) + _OVERHEAD_BYTES
        for task in plan.tasks
        for picture in task.pictures
    )


def space_taken(plan: Plan, out: Path) -> int:
    """Returns how many bytes of it earlier runs have written."""
    paths = (out / task.name for task in plan.tasks)
    return sum(path.stat().st_size for path in paths if path.is_file())


def _part_left(tasks: tuple[ShardTask, ...]) -> float:
    """Returns what part of their bytes some pictures still have when they are prepared."""
    measured = tasks[:: -(-len(tasks) // _NUM_MEASURED)]
    num_each = -(-_NUM_MEASURED // len(measured))
    before = after = 0
    for task in measured:
        for _, raw in read_pictures(replace(task, pictures=task.pictures[:num_each])):
            try:
                after += len(prepare(raw, task.options).jpeg)
                before += len(raw)
            except BadPictureError:  # which packing will tell of
                continue
    return after / before if before else 1.0
