"""Packs ImageNet, or anything laid out like it, into WebDataset shards; verifies and shows them.

Kept short on purpose: it reads the command line and calls `imagenet_rn50.shards`.

    python shard_imagenet.py pack --source DIR --out SHARDS
    python shard_imagenet.py verify --shards SHARDS
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import tyro

from imagenet_rn50.errors import exit_on_input_error
from imagenet_rn50.shards.options import PackOptions
from imagenet_rn50.shards.packing import pack as pack_source
from imagenet_rn50.shards.sources.detect import Layout, read_source


def pack(
    source: Path,
    out: Path,
    dataset: str = "imagenet1k",
    train_shards: int | None = None,
    validation_shards: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    layout: Layout | None = None,
) -> int:
    """Pack a folder of pictures into shards; the same command goes on after a crash.

    Args:
        source: The data set: Kaggle's tree (the folder that holds ILSVRC/) or ImageFolder.
        out: The folder for the shards and their manifest.
        dataset: Begins the name of every shard.
        train_shards: Number of training shards; by default one per 1,251 pictures.
        validation_shards: Number of validation shards; by default one per 781 pictures.
        seed: Decides the order in which samples are packed.
        workers: Number of processes; by default one per core. Changes no byte.
        layout: How the source is laid out; by default found out.
    """
    options = PackOptions(
        dataset=dataset,
        seed=seed,
        train_shards=train_shards,
        validation_shards=validation_shards,
    )
    packed = pack_source(read_source(source, layout), out, options, workers or os.cpu_count() or 1)
    samples = ", ".join(
        f"{split.num_samples:,} {name} samples in {len(split.shards)} shards"
        for name, split in packed.manifest.splits.items()
    )
    if packed.num_made:
        print(f"packed {out}: {samples}")
    else:
        print(f"{out} was packed before and is whole (names and sizes): {samples}")
    return 0


def main() -> None:
    """Reads the command line and runs one verb."""
    with exit_on_input_error():
        try:
            code = tyro.extras.subcommand_cli_from_dict(
                {"pack": pack}, prog="shard_imagenet.py", description=__doc__.split("\n\n")[0]
            )
        except KeyboardInterrupt:
            code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
