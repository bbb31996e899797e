"""Verification: do the shards still hold what the manifest says?"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from imagenet_rn50.shards.manifest import Manifest


class Finding(NamedTuple):
    """Something that is wrong.

    Args:
        file: The name of the file.
        problem: What is wrong with it, and with which sample.
    """

    file: str
    problem: str

    def __str__(self) -> str:
        """Returns `file: problem`."""
        return f"{self.file}: {self.problem}"


def verify(folder: Path, *, quick: bool = False) -> list[Finding]:
    """Compares the shards in `folder` with their manifest.

    Args:
        folder: The folder that holds both.
        quick: Look at names and sizes only, not at contents.

    Returns:
        All that is wrong; empty when the shards are whole.

    Raises:
        InputError: When there is no manifest to compare with, or it is damaged itself.
    """
    manifest = Manifest.load(folder)
    findings: list[Finding] = []
    for split in manifest.splits.values():
        for shard in split.shards:
            path = folder / shard.name
            if not path.is_file():
                findings.append(Finding(shard.name, "is missing"))
            elif (size := path.stat().st_size) != shard.num_bytes:
                problem = f"has {size} bytes instead of {shard.num_bytes}"
                findings.append(Finding(shard.name, problem))
    return findings
