"""The audit: what was packed, what was changed and why, and whether the counts are right."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_rn50.classes import Classes
from imagenet_rn50.errors import InputError
from imagenet_rn50.files import write_json, write_text
from imagenet_rn50.jpeg import MAX_ASPECT_RATIO, central_box
from imagenet_rn50.shards.images import TURNED
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION
from imagenet_rn50.shards.shard import Remark, Row, ShardRecord

REPORT_NAME = "audit.md"
DATA_NAME = "audit.json"
# ILSVRC 2012, classification.
IMAGENET_COUNTS = {TRAIN: 1_281_167, VALIDATION: 50_000}
IMAGENET_CLASSES = 1_000
_MAX_ROWS = 200  # of one table in the report; the JSON has them all


def audit_of(
    records: Sequence[ShardRecord], folder: Path, classes: Classes | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Gathers all that the audit says.

    Args:
        records: What each shard holds.
        folder: Where the shards stand, to compare pictures that may be duplicates.
        classes: The classes; None when their wnids are not known.
        options: How the shards were made.

    Returns:
        The content of `audit.json`; it depends on source, options and seed alone.
    """
    by_split: dict[str, list[ShardRecord]] = defaultdict(list)
    for record in records:
        by_split[record.split].append(record)
    return {
        "options": options,
        "num_classes": None if classes is None else len(classes),
        "splits": {name: _split_audit(chosen, classes) for name, chosen in by_split.items()},
        "duplicates": _duplicates(records, folder),
        "extreme_aspect_ratio": _elongated(records),
        "changed": _remarks(records, "changed"),
        "left_out": _remarks(records, "left_out"),
    }


def write_audit(audit: dict[str, Any], folder: Path) -> None:
    """Writes `audit.json` and `audit.md`."""
    write_json(folder / DATA_NAME, audit)
    write_text(folder / REPORT_NAME, report_of(audit))


def read_report(folder: Path) -> str:
    """Returns the report that was written at packing.

    Raises:
        InputError: When there is none.
    """
    path = folder / REPORT_NAME
    if not path.is_file():
        raise InputError(
            f"{folder} holds no audit",
            expected=f"{path}, written when the shards were packed or indexed",
            found="no such file" if folder.is_dir() else "no such folder",
            fix=f"python shard_imagenet.py index --shards {folder} --force",
        )
    return path.read_text(encoding="utf-8")


def _split_audit(records: Sequence[ShardRecord], classes: Classes | None) -> dict[str, Any]:
    """Counts one split."""
    rows = [row for record in records for row in record.rows]
    return {
        "num_samples": len(rows),
        "num_shards": len(records),
        "num_bytes": sum(record.shard.num_bytes for record in records),
        "num_left_out": sum(len(record.left_out) for record in records),
        "num_turned_upright": sum(
            TURNED in remark.reason for record in records for remark in record.changed
        ),
        "per_class": _per_class(rows, classes),
        "width": _spread([row.width for row in rows if row.width]),
        "height": _spread([row.height for row in rows if row.height]),
        "bytes": _spread([row.length for row in rows]),
    }


def _per_class(rows: Sequence[Row], classes: Classes | None) -> dict[str, Any]:
    """Returns the smallest and the largest class; on a tie the one of the lower index."""
    counts = Counter(row.label for row in rows)
    if classes is not None:
        counts.update(dict.fromkeys(range(len(classes)), 0))
    if not counts:
        return {}
    smallest = min(counts, key=lambda label: (counts[label], label))
    largest = min(counts, key=lambda label: (-counts[label], label))
    return {
        name: {
            "label": label,
            "wnid": None if classes is None else classes.wnids[label],
            "num_samples": counts[label],
        }
        for name, label in (("min", smallest), ("max", largest))
    }


def _spread(values: Sequence[int]) -> dict[str, float]:
    """Returns minimum, quartiles, mean and maximum."""
    if not values:
        return {}
    points = np.percentile(values, [0, 25, 50, 75, 100])
    names = ("min", "25%", "median", "75%", "max")
    return dict(zip(names, points.tolist(), strict=True)) | {"mean": float(np.mean(values))}


def _remarks(records: Iterable[ShardRecord], which: str) -> list[dict[str, Any]]:
    """Lists changed or left-out pictures, by split and path."""
    found: list[tuple[str, Remark]] = [
        (record.split, remark) for record in records for remark in getattr(record, which)
    ]
    return [{"split": split} | remark._asdict() for split, remark in sorted(found)]


def _elongated(records: Iterable[ShardRecord]) -> list[dict[str, Any]]:
    """Lists the pictures of which evaluation resizes only the center, by split and key."""
    found = [
        {"split": record.split, "key": row.key, "width": row.width, "height": row.height}
        for record in records
        for row in record.rows
        if row.width and central_box(row.height, row.width)[2:] != (row.height, row.width)
    ]
    return sorted(found, key=lambda entry: (entry["split"], entry["key"]))


def _duplicates(records: Sequence[ShardRecord], folder: Path) -> list[list[dict[str, Any]]]:
    """Finds samples of equal pictures, byte for byte, over all splits.

    Equal length and CRC-32 make them suspects; then their bytes are compared.
    """
    places: dict[tuple[int, int], list[tuple[ShardRecord, Row]]] = defaultdict(list)
    for record in records:
        for row in record.rows:
            places[row.length, row.crc32].append((record, row))
    groups = []
    for suspects in places.values():
        if len(suspects) > 1:
            groups += [group for group in _equal_groups(suspects, folder) if len(group) > 1]
    return sorted(groups, key=lambda group: [(row["split"], row["key"]) for row in group])


def _equal_groups(
    suspects: Sequence[tuple[ShardRecord, Row]], folder: Path
) -> list[list[dict[str, Any]]]:
    """Groups samples by the bytes of their pictures."""
    by_content: dict[bytes, list[dict[str, Any]]] = defaultdict(list)
    for record, row in suspects:
        with (folder / record.shard.name).open("rb") as file:
            file.seek(row.offset)
            content = file.read(row.length)
        entry = {"split": record.split, "key": row.key, "label": row.label}
        by_content[content].append(entry)
    return [sorted(group, key=lambda e: (e["split"], e["key"])) for group in by_content.values()]


def report_of(audit: dict[str, Any]) -> str:
    """Returns the audit as Markdown."""
    lines = ["# Audit of the shards", "", "| split | samples | ImageNet-1k has | shards | MB |"]
    lines += ["|---|---|---|---|---|"]
    for name, split in audit["splits"].items():
        expected = IMAGENET_COUNTS.get(name, 0)
        lines.append(
            f"| {name} | {split['num_samples']:,} | {_against(split['num_samples'], expected)} "
            f"| {split['num_shards']:,} | {split['num_bytes'] / 1e6:,.1f} |"
        )
    if audit["num_classes"] is not None:
        against = _against(audit["num_classes"], IMAGENET_CLASSES)
        lines += ["", f"Classes: {audit['num_classes']:,}; ImageNet-1k has {against}."]
    for name, split in audit["splits"].items():
        lines += _split_report(name, split)
    lines += ["", "## How they were made", ""]
    lines += [f"- {name}: {_shown(value)}" for name, value in audit["options"].items()]
    lines += _elongated_report(audit["extreme_aspect_ratio"])
    lines += _remark_report("Changed pictures", audit["changed"])
    lines += _remark_report("Pictures left out", audit["left_out"])
    lines += _duplicate_report(audit["duplicates"])
    return "\n".join(lines) + "\n"


def _against(found: int, expected: int) -> str:
    """Returns the expected count, and how far off the found one is."""
    difference = found - expected
    return f"{expected:,} ({difference:+,})" if difference else f"{expected:,} (the same)"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _split_report(name: str, split: dict[str, Any]) -> list[str]:
    """Returns the tables of one split."""
    lines = ["", f"## {name}", "", "| | min | 25% | median | 75% | max | mean |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for title, column in (("width, px", "width"), ("height, px", "height"), ("JPEG, B", "bytes")):
        if spread := split[column]:
            names = ("min", "25%", "median", "75%", "max", "mean")
            cells = " | ".join(f"{spread[point]:,.0f}" for point in names)
            lines.append(f"| {title} | {cells} |")
    if split["per_class"]:
        ends = [
            f"{end['num_samples']:,} ({end['wnid'] or 'class ' + str(end['label'])})"
            for end in split["per_class"].values()
        ]
        lines += ["", f"Samples a class: from {ends[0]} to {ends[1]}."]
    if turned := split["num_turned_upright"]:
        lines += ["", f"Turned upright by EXIF orientation: {turned:,}."]
    return lines


def _elongated_report(found: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the list of pictures of extreme aspect ratio; nothing where there are none."""
    if not found:
        return []
    lines = ["", f"## Extreme aspect ratio: {len(found):,}", ""]
    lines += [f"Beyond {MAX_ASPECT_RATIO}:1; evaluation resizes only their center.", ""]
    lines += [
        f"- {_cell(e['split'])}/{_cell(e['key'])}: {e['width']} x {e['height']} px"
        for e in found[:_MAX_ROWS]
    ]
    return lines + _rest(len(found))


def _remark_report(title: str, remarks: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the table of changed or left-out pictures."""
    lines = ["", f"## {title}: {len(remarks):,}"]
    if remarks:
        lines += ["", "| split | file | key | class | reason |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['split']} | {_cell(r['path'])} | {_cell(r['key'])} | {r['label']} "
        f"| {_cell(r['reason'])} |"
        for r in remarks[:_MAX_ROWS]
    ]
    return lines + _rest(len(remarks))


def _duplicate_report(groups: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """Returns the list of equal pictures."""
    lines = ["", f"## Exact duplicates: {len(groups):,} groups", ""]
    lines += [
        "- " + " = ".join(_cell(f"{e['split']}/{e['key']} (class {e['label']})") for e in group)
        for group in groups[:_MAX_ROWS]
    ]
    return lines + _rest(len(groups))


def _rest(total: int) -> list[str]:
    return ["", f"... and {total - _MAX_ROWS:,} more, in {DATA_NAME}"] if total > _MAX_ROWS else []


def _cell(text: str) -> str:
    """Returns text that cannot break out of a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ")
