"""Packs ImageNet, or anything laid out like it, into WebDataset shards; verifies and shows them.

Kept short on purpose: it reads the command line and calls `imagenet_rn50.shards`.

    python shard_imagenet.py pack --source DIR --out SHARDS
    python shard_imagenet.py verify --shards SHARDS
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tyro

from imagenet_rn50.shards.audit import read_audit, read_report
from imagenet_rn50.shards.contact_sheet import write_sheet
from imagenet_rn50.shards.images import is_installed
from imagenet_rn50.shards.index import index as index_shards
from imagenet_rn50.shards.pack import Packed
from imagenet_rn50.shards.pack import pack as pack_source
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.base import Source
from imagenet_rn50.shards.sources.detect import Layout, read_source
from imagenet_rn50.shards.verify import verify as verify_shards
from imagenet_rn50.utils.errors import exit_on_input_error, require_at_least

EXIT_FOUND_SOMETHING = 1
EXIT_INTERRUPTED = 130


def pack(
    source: Path,
    out: Path,
    dataset: str | None = None,
    train_shards: int | None = None,
    validation_shards: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    layout: Layout | None = None,
    restart_blocks: Literal["auto", "none"] | int = "auto",
    resize: str | None = None,
    quality: int = 95,
    on_corrupt: Literal["stop", "skip"] = "stop",
    check: Literal["decode", "header"] = "decode",
    metadata: bool = False,
    train_only: bool = False,
) -> int:
    """Pack a folder of pictures into shards; the same command goes on after a crash.

    Args:
        source: The data set: Kaggle's tree (the folder that holds ILSVRC/, or one in it),
            ImageFolder, the official tars with their development kit, or Hugging Face's parquet
            files.
        out: The folder for the shards and their manifest.
        dataset: Begins the name of every shard; by default the name of the source's folder.
            imagenet1k and the like are for data with ImageNet-1k's classes and numbers of images.
        train_shards: Number of training shards; by default one per 1,251 pictures.
        validation_shards: Number of validation shards; by default one per 781 pictures.
        seed: Decides the order in which samples are packed.
        workers: Number of processes; by default one per core. Changes no byte.
        layout: How the source is laid out; by default found out.
        restart_blocks: MCUs between two restart markers, added without loss; none for no markers;
            auto, where jpegtran is installed, for the number that suits each picture's width.
        resize: short=256 or max=500 scales larger pictures down; by default pixels stay.
        quality: JPEG quality of pictures that are resized.
        on_corrupt: Whether a picture that cannot be decoded stops the run or is left out (skip).
        check: Whether every picture is decoded once, or only its header is read.
        metadata: Also pack a KEY.json beside each picture.
        train_only: Pack the training images alone; else a source without validation is refused.
    """
    if restart_blocks == "auto" and not is_installed():
        print("jpegtran is not installed (libjpeg-turbo-progs): packing without restart markers")
        restart_blocks = "none"
    options = PackOptions(
        dataset=dataset,
        seed=seed,
        train_shards=train_shards,
        validation_shards=validation_shards,
        resize=resize,
        quality=quality,
        restart_blocks=None if restart_blocks == "none" else restart_blocks,
        metadata=metadata,
        check=check,
        on_corrupt=on_corrupt,
        train_only=train_only,
    )
    found = read_source(source, layout, train_only=train_only)
    packed = pack_source(found, out, options, _num_workers(workers))
    print(_in_words(packed, out))
    for line in _not_packed(found, out):
        print(line)
    return 0


def _not_packed(source: Source, out: Path) -> Iterator[str]:
    """Says what of a source is not packed, folders one by one and files as a number."""
    yield from (f"note: {note}" for note in source.notes)
    left_out = read_audit(out).get("left_out", [])
    if left_out:
        yield f"left out: {len(left_out):,} files, such as {left_out[0]['path']} (see audit.md)"
    others = [entry for entry in source.unpacked if not entry.is_error]
    single = [entry for entry in others if not entry.path.endswith("/")]
    for entry in others:
        if entry.path.endswith("/"):
            yield f"not packed: {entry.path} ({entry.num_files:,} files): {entry.reason}"
    if single:
        yield (
            f"not packed: {len(single):,} single files, such as {single[0].path}: "
            f"{single[0].reason} (see audit.md)"
        )


def _in_words(packed: Packed, out: Path) -> str:
    """Says what stands in the output folder, and whether it was made now."""
    samples = ", ".join(
        f"{split.num_samples:,} {name} samples in {len(split.shards):,} shards"
        for name, split in packed.manifest.splits.items()
    )
    if packed.num_made:
        return f"packed {packed.manifest.dataset} into {out}: {samples}"
    return f"{out} was packed before and is whole (names and sizes): {samples}"


def verify(shards: Path, quick: bool = False, workers: int | None = None) -> int:
    """Compare shards with their manifest; exit code 1 when something is wrong.

    Args:
        shards: The folder of the shards.
        quick: Look at names and sizes only; else also at every byte.
        workers: How many shards are read at a time; by default one per core.
    """
    threads = _num_workers(workers)
    findings = verify_shards(shards, quick=quick, num_threads=threads, show_progress=True)
    for finding in findings:
        print(finding)
    if findings:
        files = len({finding.file for finding in findings})
        print(f"{shards}: {len(findings)} problems in {files} files")
        return EXIT_FOUND_SOMETHING
    print(f"{shards} is whole ({'names and sizes' if quick else 'every byte'})")
    return 0


def index(
    shards: Path,
    dataset: str | None = None,
    mapping: Path | None = None,
    force: bool = False,
    workers: int | None = None,
) -> int:
    """Make a manifest for WebDataset shards that others have made.

    Args:
        shards: The folder of the shards, named like imagenet1k-train-0000.tar.
        dataset: The data set's name; by default taken from the shards' names.
        mapping: A list of classes that names them: LOC_synset_mapping.txt, classes.json or Keras'
            imagenet_class_index.json; by default looked for in SHARDS.
        force: Write over a manifest that is whole.
        workers: How many shards are read at a time; by default one per core.
    """
    manifest = index_shards(
        shards, dataset=dataset, mapping=mapping, force=force, num_threads=_num_workers(workers)
    )
    for name, split in manifest.splits.items():
        print(f"{name}: {split.num_samples:,} samples in {len(split.shards):,} shards")
    return 0


def audit(shards: Path) -> int:
    """Print what was packed: counts, changed and left-out pictures, duplicates, sizes.

    Args:
        shards: The folder of the shards.
    """
    print(read_report(shards), end="")
    return 0


def sample(
    shards: Path,
    out: Path = Path("samples.png"),
    split: Literal["train", "validation"] = "train",
    num: int = 24,
    seed: int = 0,
) -> int:
    """Draw random samples with their class names into a PNG, to look at.

    Args:
        shards: The folder of the shards.
        out: The PNG to write.
        split: Which samples.
        num: How many.
        seed: Decides which.
    """
    keys = write_sheet(shards, out, split=split, num_samples=num, seed=seed)
    print(f"{out}: {len(keys)} samples")
    return 0


def _num_workers(asked: int | None) -> int:
    """Returns the asked number of workers, or one per core."""
    if asked is not None:
        require_at_least("--workers", asked, 1)
    return asked or os.cpu_count() or 1


def main() -> None:
    """Reads the command line and runs one verb."""
    verbs = {f.__name__: f for f in (pack, verify, index, audit, sample)}
    description = (__doc__ or "").partition("\n")[0]
    with exit_on_input_error():
        try:
            code = tyro.extras.subcommand_cli_from_dict(
                verbs, prog="shard_imagenet.py", description=description
            )
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
