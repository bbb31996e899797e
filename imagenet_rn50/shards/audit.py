"""The audit: what was packed, changed and skipped, and whether the counts add up."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_rn50.classes import Classes
from imagenet_rn50.jpeg.decode import MAX_ASPECT_RATIO, central_box
from imagenet_rn50.shards.imagenet1k import NUM_CLASSES, NUM_IMAGES, complete_splits
from imagenet_rn50.shards.images import LEAST_SIDE, TURNED
from imagenet_rn50.shards.manifest import FILE_NAME, Manifest, no_manifest
from imagenet_rn50.shards.sources.base import Source
from imagenet_rn50.shards.store import resolve_location
from imagenet_rn50.shards.subset import options_text
from imagenet_rn50.shards.writer import Note, Row, ShardRecord
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_json, write_json, write_text
from imagenet_rn50.utils.formatting import counted, quoted, shortened

REPORT_NAME = "audit.md"
DATA_NAME = "audit.json"
_MAX_ROWS = 200  # of one table in the report; the JSON has them all
_MAX_GROUPS = 20  # of duplicates


def audit_of(
    records: Sequence[ShardRecord],
    folder: Path | None,
    classes: Classes | None,
    options: dict[str, Any],
    source: Source | None = None,
) -> dict[str, Any]:
    """Collect the content of the audit.

    Args:
        records: What each shard holds.
        folder: Where the shards stand, to compare images that may be duplicates; None for remote
            shards, whose images are compared by length and CRC-32.
        classes: The classes; None when their wnids are not known.
        options: How the shards were made.
        source: What was packed; None for shards that others packed.

    Returns:
        The content of `audit.json`; it depends on source, options and seed alone.

    Raises:
        RuntimeError: When the files of the source and what became of them do not add up.
    """
    by_split: dict[str, list[ShardRecord]] = defaultdict(list)
    for record in records:
        by_split[record.split].append(record)
    splits = {name: _split_audit(chosen, classes) for name, chosen in by_split.items()}
    audit: dict[str, Any] = {
        "options": options,
        "num_classes": None if classes is None else len(classes),
        "imagenet1k_splits": complete_splits(
            classes, {name: split["num_samples"] for name, split in splits.items()}, options
        ),
        "splits": splits,
        "duplicates": _duplicates(records, folder),
        "extreme_aspect_ratio": _elongated(records),
        "changed": _notes(records, "changed"),
        "skipped": _notes(records, "skipped"),
    }
    if folder is None:
        audit["duplicates_by"] = "length and CRC-32"
    if source is not None:
        for name, split in splits.items():
            split["files"] = _files(by_split[name], source, name)
            split["num_skipped"] = split["files"]["skipped"]
        missed = [entry for entry in source.unpacked if entry.is_error]
        audit["skipped"] += [
            {"split": e.split, "path": e.path, "key": "", "label": None, "reason": e.reason}
            for e in missed
        ]
        audit["not_packed"] = [
            {name: value for name, value in entry._asdict().items() if name != "is_error"}
            for entry in source.unpacked
            if not entry.is_error
        ]
        audit["notes"] = source.notes
    return audit


def _files(records: Sequence[ShardRecord], source: Source, split: str) -> dict[str, Any]:
    """Count the files of one split by what became of them."""
    unpacked = [entry for entry in source.unpacked if entry.split == split]
    packed = sum(len(record.rows) for record in records)
    converted = sum((Counter(record.converted) for record in records), Counter())
    touched = {(note.path, note.key) for record in records for note in record.changed}
    files: dict[str, Any] = {
        "found": len(source.splits[split]) + sum(entry.num_files for entry in unpacked),
        "unchanged": packed - len(touched),
        "converted": dict(sorted(converted.items())),
        "changed": len(touched) - sum(converted.values()),
        "skipped": sum(len(record.skipped) for record in records)
        + sum(entry.num_files for entry in unpacked if entry.is_error),
        "not_packed": sum(entry.num_files for entry in unpacked if not entry.is_error),
    }
    parts = (files[name] for name in ("unchanged", "changed", "skipped", "not_packed"))
    if files["found"] != sum(parts) + sum(converted.values()):
        raise RuntimeError(f"the files of {split} do not add up: {files}")
    return files


def write_audit(audit: dict[str, Any], folder: Path) -> None:
    """Write `audit.json` and `audit.md`."""
    write_json(folder / DATA_NAME, audit)
    write_text(folder / REPORT_NAME, report_of(audit))


def read_report(folder: Path) -> str:
    """Return the report that was written at packing; of a subset, what was selected from where.

    Raises:
        InputError: When there is none.
    """
    path = folder / REPORT_NAME
    if not path.is_file():
        if not (folder / FILE_NAME).is_file():
            raise no_manifest(folder)
        if (manifest := Manifest.load(folder)).is_subset:
            return subset_report(manifest, Classes.load(folder), folder)
        raise InputError(
            f"{folder} holds no audit",
            expected=f"{path}, written when the shards were packed or indexed",
            found="no such file",
            fix=f"python shard_imagenet.py index --shards {quoted(folder)} --force",
        )
    return path.read_text(encoding="utf-8")


def subset_report(manifest: Manifest, classes: Classes, folder: Path) -> str:
    """Return what a subset has of each class, and what it was selected from, as Markdown.

    Args:
        manifest: The subset's.
        classes: Its classes.
        folder: Its folder.
    """
    lines = ["# Audit of a subset", "", "| split | samples | MB | shards | MB of shards |"]
    lines += ["|---|---|---|---|---|"]
    for name, split in manifest.splits.items():
        size = sum(shard.num_bytes for shard in split.shards)
        lines.append(
            f"| {name} | {split.num_samples:,} | {_megabytes(manifest.num_bytes_of(name))} "
            f"| {len(split.shards):,} | {_megabytes(size)} |"
        )
    lines += ["", f"Shards: {resolve_location(str(folder), manifest.location)}", ""]
    lines += ["Selections, the latest first:", ""]
    options = manifest.options
    while "subset" in options:
        parent = options["parent"]
        chosen = _cell(options_text(options["subset"]))
        lines.append(
            f"- {chosen or 'everything'}, of {parent['dataset']} (fingerprint "
            f"{parent['fingerprint']})"
        )
        options = parent["options"]
    if holdout := manifest.options.get("holdout"):
        lines += ["", f"Validation is held out of the training images: {holdout:g} of each class."]
    lines += ["", f"## Classes: {len(classes):,}", ""]
    counts = [
        np.bincount(split.labels, minlength=len(classes)) for split in manifest.splits.values()
    ]
    lines += [f"| index | class | {' | '.join(manifest.splits)} |"]
    lines += ["|---" * (2 + len(counts)) + "|"]
    lines += [
        f"| {label} | {_cell(name)} | {' | '.join(f'{column[label]:,}' for column in counts)} |"
        for label, name in enumerate(classes.labels)
    ]
    return "\n".join(lines) + "\n"


def read_audit(folder: Path) -> dict[str, Any]:
    """Return the audit that was written at packing; an empty one where there is none."""
    path = folder / DATA_NAME
    audit: dict[str, Any] = read_json(path) if path.is_file() else {}
    return audit


def _split_audit(records: Sequence[ShardRecord], classes: Classes | None) -> dict[str, Any]:
    """Count one split."""
    rows = [row for record in records for row in record.rows]
    return {
        "num_samples": len(rows),
        "num_shards": len(records),
        "num_bytes": sum(record.shard.num_bytes for record in records),
        "num_skipped": sum(len(record.skipped) for record in records),
        "num_turned_upright": sum(
            TURNED in note.reason for record in records for note in record.changed
        ),
        "num_without_markers": sum(record.num_without_markers for record in records),
        "per_class": _per_class(rows, classes),
        "width": _spread([row.width for row in rows if row.width]),
        "height": _spread([row.height for row in rows if row.height]),
        "bytes": _spread([row.length for row in rows]),
    }


def _per_class(rows: Sequence[Row], classes: Classes | None) -> dict[str, Any]:
    """Return the smallest and the largest class; on a tie the one of the lower index."""
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
    """Return minimum, quartiles, mean and maximum."""
    if not values:
        return {}
    points = np.percentile(values, [0, 25, 50, 75, 100])
    names = ("min", "25%", "median", "75%", "max")
    return dict(zip(names, points.tolist(), strict=True)) | {"mean": float(np.mean(values))}


def _notes(records: Iterable[ShardRecord], which: str) -> list[dict[str, Any]]:
    """List changed or skipped images, by split and path."""
    found: list[tuple[str, Note]] = [
        (record.split, note) for record in records for note in getattr(record, which)
    ]
    return [{"split": split} | note._asdict() for split, note in sorted(found)]


def _elongated(records: Iterable[ShardRecord]) -> list[dict[str, Any]]:
    """List the images of which evaluation resizes only the center, by split and key."""
    found = [
        {"split": record.split, "key": row.key, "width": row.width, "height": row.height}
        for record in records
        for row in record.rows
        if row.width and central_box(row.height, row.width)[2:] != (row.height, row.width)
    ]
    return sorted(found, key=lambda entry: (entry["split"], entry["key"]))


def _duplicates(records: Sequence[ShardRecord], folder: Path | None) -> list[list[dict[str, Any]]]:
    """Find samples of equal images, byte for byte, over all splits.

    Equal length and CRC-32 make them suspects; then their bytes are compared, where they are local.
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
    suspects: Sequence[tuple[ShardRecord, Row]], folder: Path | None
) -> list[list[dict[str, Any]]]:
    """Group samples by the bytes of their images."""
    by_content: dict[bytes, list[dict[str, Any]]] = defaultdict(list)
    for record, row in suspects:
        content = b""
        if folder is not None:
            with (folder / record.shard.name).open("rb") as file:
                file.seek(row.offset)
                content = file.read(row.length)
        entry = {"split": record.split, "key": row.key, "label": row.label}
        by_content[content].append(entry)
    return [sorted(group, key=lambda e: (e["split"], e["key"])) for group in by_content.values()]


def report_of(audit: dict[str, Any]) -> str:
    """Return the audit as Markdown."""
    is_imagenet = audit["num_classes"] == NUM_CLASSES or bool(audit["imagenet1k_splits"])
    lines = ["# Audit of the shards", "", "| split | samples | shards | MB |"]
    if is_imagenet:
        lines[-1] = "| split | samples | ImageNet-1k has | shards | MB |"
    lines += ["|---" * (5 if is_imagenet else 4) + "|"]
    for name, split in audit["splits"].items():
        cells = [name, f"{split['num_samples']:,}"]
        if is_imagenet:
            expected = NUM_IMAGES.get(name)
            cells.append(
                "not known" if expected is None else _against(split["num_samples"], expected)
            )
        cells += [f"{split['num_shards']:,}", _megabytes(split["num_bytes"])]
        lines.append(f"| {' | '.join(cells)} |")
    if audit["num_classes"] is not None:
        lines += ["", f"Classes: {audit['num_classes']:,}."]
    if is_imagenet:
        complete = ", ".join(audit["imagenet1k_splits"]) or "none"
        lines += ["", f"Splits identical to ImageNet-1k by wnids and image counts: {complete}."]
    lines += [line for note in audit.get("notes", []) for line in ("", f"Note: {note}.")]
    lines += _files_report(audit["splits"])
    for name, split in audit["splits"].items():
        lines += _split_report(name, split)
    lines += ["", "## Options", ""]
    lines += [f"- {name}: {_shown(value)}" for name, value in audit["options"].items()]
    lines += _elongated_report(audit["extreme_aspect_ratio"])
    lines += _note_report("Changed images", audit["changed"])
    lines += _note_report("Skipped images", audit["skipped"])
    lines += _not_packed_report(audit.get("not_packed", []))
    lines += _duplicate_report(audit["duplicates"], audit.get("duplicates_by"))
    return "\n".join(lines) + "\n"


def _against(found: int, expected: int) -> str:
    """Return the expected count, and how far off the found one is."""
    difference = found - expected
    return f"{expected:,} ({difference:+,})" if difference else f"{expected:,} (the same)"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f}" if num_bytes >= 1e5 else f"{num_bytes / 1e6:.2g}"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _split_report(name: str, split: dict[str, Any]) -> list[str]:
    """Return the tables of one split."""
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
        lines += ["", f"Samples per class: from {ends[0]} to {ends[1]}."]
    if turned := split["num_turned_upright"]:
        lines += ["", f"Turned upright by EXIF orientation: {turned:,}."]
    if small := split["num_without_markers"]:
        lines += ["", f"Without restart markers, for a side is under {LEAST_SIDE} px: {small:,}."]
    return lines


def _elongated_report(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return the list of images of extreme aspect ratio; nothing where there are none."""
    if not found:
        return []
    lines = ["", f"## Extreme aspect ratio: {len(found):,}", ""]
    lines += [f"Beyond {MAX_ASPECT_RATIO}:1, evaluation resizes only the center.", ""]
    lines += [
        f"- {_cell(e['split'])}/{_cell(e['key'])}: {e['width']} x {e['height']} px"
        for e in found[:_MAX_ROWS]
    ]
    return lines + _rest(len(found))


def _note_report(title: str, notes: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of changed or skipped images."""
    lines = ["", f"## {title}: {len(notes):,}"]
    if notes:
        lines += ["", "| split | file | key | class | reason |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['split']} | {_cell(r['path'])} | {_cell(r['key'])} | {r['label']} "
        f"| {_cell(r['reason'])} |"
        for r in notes[:_MAX_ROWS]
    ]
    return lines + _rest(len(notes))


def _files_report(splits: dict[str, Any]) -> list[str]:
    """Return the table of what became of the files of the source."""
    if not all("files" in split for split in splits.values()):
        return []
    lines = ["", "| files of | found | unchanged | converted | changed | skipped | no images |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, split in splits.items():
        files = split["files"]
        converted = ", ".join(f"{count:,} {form}" for form, count in files["converted"].items())
        lines.append(
            f"| {name} | {files['found']:,} | {files['unchanged']:,} | {converted or 0} "
            f"| {files['changed']:,} | {files['skipped']:,} | {files['not_packed']:,} |"
        )
    return [*lines, "", "The number found is the sum of the other columns."]


def _not_packed_report(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of what else was found in the source."""
    lines = ["", f"## Not packed: {sum(entry['num_files'] for entry in entries):,} files"]
    if entries:
        lines += ["", "| file or folder | files | reason |", "|---|---|---|"]
    lines += [
        f"| {_cell(e['path'])} | {e['num_files']:,} | {_cell(e['reason'])} |"
        for e in entries[:_MAX_ROWS]
    ]
    return lines + _rest(len(entries))


def _duplicate_report(
    groups: Sequence[Sequence[dict[str, Any]]], compared_by: str | None
) -> list[str]:
    """Return the table of equal images, the largest groups first."""
    title = "Exact duplicates" if compared_by is None else f"Duplicates by {compared_by}"
    lines = ["", f"## {title}: {counted(len(groups), 'group')}"]
    if not groups:
        return lines
    num_images = sum(map(len, groups))
    in_both = sum(len({entry["split"] for entry in group}) > 1 for group in groups)
    differ = sum(len({entry["label"] for entry in group}) > 1 for group in groups)
    lines += [
        "",
        f"{num_images:,} images, {num_images - len(groups):,} of them copies; groups in more than "
        f"one split: {in_both:,}; groups of more than one class: {differ:,}.",
        "",
        "| images | splits | classes | such as |",
        "|---|---|---|---|",
    ]
    shown = sorted(groups, key=lambda group: -len(group))[:_MAX_GROUPS]
    for group in shown:
        splits = sorted({entry["split"] for entry in group})
        labels = sorted({entry["label"] for entry in group})
        names = [f"{entry['split']}/{entry['key']}" for entry in group]
        cells = (", ".join(splits), shortened(labels), shortened(names, 2))
        lines.append(f"| {len(group):,} | {' | '.join(_cell(cell) for cell in cells)} |")
    return lines + _rest(len(groups), _MAX_GROUPS)


def _rest(total: int, shown: int = _MAX_ROWS) -> list[str]:
    return ["", f"... and {total - shown:,} more, in {DATA_NAME}"] if total > shown else []


def _cell(text: str) -> str:
    """Return text that cannot break out of a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ")
