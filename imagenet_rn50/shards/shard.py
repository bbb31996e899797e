"""One shard: read its pictures, prepare them, write the tar, remember what went in."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from imagenet_rn50.errors import InputError
from imagenet_rn50.files import atomic_file, write_text
from imagenet_rn50.shards.imagenet1k import is_name
from imagenet_rn50.shards.images import BadPictureError, Prepared, prepare
from imagenet_rn50.shards.manifest import Shard
from imagenet_rn50.shards.plan import ShardTask
from imagenet_rn50.shards.sources.base import Picture, readable
from imagenet_rn50.shards.sources.reading import read_pictures
from imagenet_rn50.shards.tar import TarWriter

# Called after each picture with the number of bytes read.
Tick = Callable[[int], None]


class Row(NamedTuple):
    """One packed sample, as the manifest and the audit need it."""

    key: str
    label: int
    offset: int
    length: int
    crc32: int
    width: int
    height: int


class Remark(NamedTuple):
    """A picture that was changed or left out, and why."""

    path: str
    key: str
    label: int
    reason: str


@dataclass
class ShardRecord:
    """What a finished shard holds.

    Args:
        split: `train` or `validation`.
        shard: Name, size and hash of the tar.
        rows: Its samples, in their order.
        changed: Pictures whose bytes were repaired or converted.
        left_out: Pictures that could not be used.
        converted: Number of pictures that were converted, by the format that they had.
    """

    split: str
    shard: Shard
    rows: list[Row] = field(default_factory=list)
    changed: list[Remark] = field(default_factory=list)
    left_out: list[Remark] = field(default_factory=list)
    converted: dict[str, int] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the record as JSON, whole or not at all."""
        content = {
            "split": self.split,
            "shard": asdict(self.shard),
            "rows": self.rows,
            "changed": self.changed,
            "left_out": self.left_out,
            "converted": self.converted,
        }
        write_text(path, json.dumps(content))

    @classmethod
    def load(cls, path: Path) -> ShardRecord:
        """Reads a record that `save` wrote.

        Raises:
            ValueError, KeyError, TypeError, OSError: When it is missing or is something else.
        """
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            split=content["split"],
            shard=Shard(**content["shard"]),
            rows=[Row(*row) for row in content["rows"]],
            changed=[Remark(*remark) for remark in content["changed"]],
            left_out=[Remark(*remark) for remark in content["left_out"]],
            converted=content["converted"],
        )


def make_shard(task: ShardTask, folder: Path, tick: Tick) -> ShardRecord:
    """Writes one shard into `folder`, whole or not at all.

    Args:
        task: What goes into it.
        folder: Where it shall stand.
        tick: Called after each picture.

    Returns:
        What went in.

    Raises:
        InputError: When a picture cannot be used and the options say to stop.
        OSError: When the disk is full, or the source cannot be read.
    """
    rows: list[Row] = []
    changed: list[Remark] = []
    left_out: list[Remark] = []
    converted: Counter[str] = Counter()
    with atomic_file(folder / task.name) as file:
        tar = TarWriter(file)
        for picture, raw in read_pictures(task):
            try:
                prepared = prepare(raw, task.options)
            except BadPictureError as error:
                left_out.append(_left_out(task, picture, str(error)))
            else:
                rows.append(_add_sample(tar, task, picture, prepared))
                if prepared.converted_from is not None:
                    converted[prepared.converted_from] += 1
                changed += (
                    Remark(readable(picture.path), picture.key, picture.label, change)
                    for change in prepared.changes
                )
            tick(len(raw))
        sha256 = tar.close()
    shard = Shard(name=task.name, num_samples=len(rows), num_bytes=tar.num_bytes, sha256=sha256)
    return ShardRecord(task.split, shard, rows, changed, left_out, dict(converted))


def _add_sample(tar: TarWriter, task: ShardTask, picture: Picture, prepared: Prepared) -> Row:
    """Appends the members of one sample."""
    offset = tar.add(f"{picture.key}.jpg", prepared.jpeg)
    tar.add(f"{picture.key}.cls", str(picture.label).encode("ascii"))
    if task.options.metadata:
        facts = {
            "key": picture.key,
            "label": picture.label,
            "wnid": task.wnids[picture.label],
            "width": prepared.width,
            "height": prepared.height,
            "source": readable(picture.path),
            "changes": prepared.changes,
        }
        tar.add(f"{picture.key}.json", json.dumps(facts, ensure_ascii=False).encode("utf-8"))
    return Row(
        key=picture.key,
        label=picture.label,
        offset=offset,
        length=len(prepared.jpeg),
        crc32=zlib.crc32(prepared.jpeg),
        width=prepared.width,
        height=prepared.height,
    )


def _left_out(task: ShardTask, picture: Picture, reason: str) -> Remark:
    """Returns the remark on a bad picture, or stops the run."""
    name = str(task.options.dataset)
    if task.options.on_bad == "stop" or is_name(name):
        row = f" (row {picture.offset})" if task.layout == "parquet" else ""
        fix = "replace the file, or leave such pictures out: --on-bad skip"
        if task.options.on_bad == "skip":
            fix = f"replace the file, or give the data another name than {name}: --dataset"
        raise InputError(
            f"the picture {readable(picture.path)}{row} (key {picture.key}) cannot be used",
            expected="an image that decodes whole",
            found=reason,
            fix=fix,
        )
    return Remark(readable(picture.path), picture.key, picture.label, reason)
