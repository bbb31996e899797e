"""`_info.json`: the lengths of all shards, where timm looks for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.writer import ShardRecord
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_json

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


def require_same_info(
    folder: Path, records: Sequence[ShardRecord], replaced: Manifest | None
) -> None:
    """Stop where the `_info.json` in `folder` contradicts the shards that lie there.

    Args:
        folder: Where the shards stand; it need not hold that file.
        records: What they hold.
        replaced: A manifest that is to be replaced. Where the file was written with it, shards may
            have been added or changed since, but none may be missing.

    Raises:
        InputError: When a shard is missing, not listed, or has another number of samples; or when
            the labels are those of a JSON field.
    """
    path = folder / INFO_NAME
    if not path.is_file():
        return
    fix = f"download the shards again, or move {path} elsewhere if it is not theirs"
    content = read_json(path)
    is_ours = replaced is not None and content == timm_info(replaced)
    try:
        listed: dict[str, int] = {}
        for name, split in content["splits"].items():
            lengths = dict(zip(split["filenames"], split["shard_lengths"], strict=True))
            listed |= lengths
            if split["num_samples"] != sum(lengths.values()):
                raise InputError(
                    f"{path} contradicts itself",
                    expected=f"{sum(lengths.values())} samples, as its shard_lengths add up to",
                    found=f"num_samples {split['num_samples']} of {name}",
                    fix=fix,
                )
            if split.get("alt_label"):
                raise InputError(
                    f"{path} takes the labels of {name} from the JSON field {split['alt_label']!r}",
                    expected="labels in .cls, or in the JSON field 'label'",
                    fix="make the shards again with these labels in .cls",
                )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} cannot be read",
            expected="splits with filenames, shard_lengths and num_samples, as timm writes it",
            found=f"an entry without {error}" if isinstance(error, KeyError) else "something else",
            fix=f"move {path} elsewhere if it is not of these shards",
        ) from None
    counted = {record.shard.name: record.shard.num_samples for record in records}
    if missing := sorted(listed.keys() - counted.keys()):
        raise InputError(
            f"{path} lists {len(missing)} shards that are not there, such as {missing[0]}",
            expected=f"{len(listed)} shards",
            found=f"{len(counted)} shards",
            fix=f"download them, or move {path} elsewhere to index only what is there",
        )
    for name, count in counted.items():
        if not is_ours and listed.get(name) != count:
            raise InputError(
                f"{name} is not as {path} describes it",
                expected=f"{listed[name]} samples" if name in listed else "only shards it lists",
                found=f"{count} samples",
                fix=fix,
            )
