"""`_info.json`: the lengths of all shards, where timm looks for them."""

from __future__ import annotations

from typing import Any

from imagenet_rn50.shards.manifest import Manifest

INFO_NAME = "_info.json"


def timm_info(manifest: Manifest) -> dict[str, Any]:
    """Returns the content of `_info.json`, as timm's WebDataset reader expects it."""
    return {
        "splits": {
            name: {
                "name": name,
                "num_samples": split.num_samples,
                "filenames": [shard.name for shard in split.shards],
                "shard_lengths": [shard.num_samples for shard in split.shards],
            }
            for name, split in manifest.splits.items()
        }
    }
