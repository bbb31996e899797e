"""The last step of packing and of indexing: audit, classes, `_info.json`, and the manifest.

The manifest comes last: where it stands, everything else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_rn50.classes import FILE_NAME as CLASSES_NAME
from imagenet_rn50.classes import Classes
from imagenet_rn50.files import sha256_of_file, write_json
from imagenet_rn50.shards.audit import audit_of, write_audit
from imagenet_rn50.shards.info import INFO_NAME, timm_info
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest, Split
from imagenet_rn50.shards.shard import ShardRecord
from imagenet_rn50.shards.sources.base import Source


def finish(
    records: Sequence[ShardRecord],
    folder: Path,
    *,
    dataset: str,
    options: dict[str, Any],
    classes: Classes | None,
    source: Source | None = None,
) -> Manifest:
    """Writes all that stands beside the shards.

    Args:
        records: What each shard holds, in the order of the shards.
        folder: Where the shards stand.
        dataset: The data set's name.
        options: How the shards were made.
        classes: The classes; None when their wnids are not known.
        source: What was packed; None for shards that others packed.

    Returns:
        The manifest, as it was written.
    """
    classes_sha256 = None
    if classes is not None:
        classes.save(folder)
        classes_sha256 = sha256_of_file(folder / CLASSES_NAME)
    manifest = Manifest(dataset, options, _splits_of(records), classes_sha256)
    write_json(folder / INFO_NAME, timm_info(manifest))
    write_audit(audit_of(records, folder, classes, options, source), folder)
    manifest.save(folder)
    return manifest


def _splits_of(records: Sequence[ShardRecord]) -> dict[str, Split]:
    """Gathers the records of each split into columns."""
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
