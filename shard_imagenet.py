"""Pack ImageNet, or data sets of the same layouts, into WebDataset shards; verify and show them.

Parses the command line and calls `imagenet_rn50.shards`.

    python shard_imagenet.py pack --source DIR --out SHARDS
    python shard_imagenet.py verify --shards SHARDS
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from imagenet_rn50.shards.audit import read_audit, read_report
from imagenet_rn50.shards.contact_sheet import write_sheet
from imagenet_rn50.shards.images import LEAST_SIDE
from imagenet_rn50.shards.index import IndexOptions
from imagenet_rn50.shards.index import index as index_shards
from imagenet_rn50.shards.lossless import is_installed
from imagenet_rn50.shards.pack import Packed
from imagenet_rn50.shards.pack import pack as pack_source
from imagenet_rn50.shards.plan import DEFAULT_QUALITY, PackOptions
from imagenet_rn50.shards.sources.base import Source
from imagenet_rn50.shards.sources.detect import Layout, read_source
from imagenet_rn50.shards.store import open_shards
from imagenet_rn50.shards.subset import Selection
from imagenet_rn50.shards.subset import subset as make_subset
from imagenet_rn50.shards.verify import verify as verify_shards
from imagenet_rn50.utils.errors import exit_on_input_error, require_at_least
from imagenet_rn50.utils.formatting import counted
from imagenet_rn50.utils.storage import is_address
from imagenet_rn50.utils.version import print_version_and_exit

EXIT_FOUND_SOMETHING = 1
EXIT_INTERRUPTED = 130
_REMOTE_STREAMS = 8


def pack(
    source: str,
    out: Path,
    dataset: str | None = None,
    train_shards: int | None = None,
    validation_shards: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    layout: Layout | None = None,
    restart_blocks: Literal["auto", "none"] | int = "auto",
    resize: str | None = None,
    quality: int = DEFAULT_QUALITY,
    recode: int | None = None,
    on_corrupt: Literal["stop", "skip"] = "stop",
    check: Literal["decode", "header"] = "decode",
    metadata: bool = False,
    train_only: bool = False,
    holdout: float | None = None,
    cache: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_names: Path | None = None,
) -> int:
    """Pack images into shards. Run the same command again to resume.

    Args:
        source: Folder of the data set: Kaggle's tree (the folder with ILSVRC/, or one inside it),
            folders of classes (in train/ and val/, or not), the official tars with their
            development kit, parquet files, or shards, with a manifest or without. Parquet files and
            manifests may be at an address, such as hf://datasets/OWNER/NAME.
        out: Output folder for the shards and their manifest.
        dataset: Name of the data set and prefix of every shard; defaults to the name of the source
            folder. Names like imagenet1k require ImageNet-1k's classes and image counts.
        train_shards: Number of training shards; defaults to one per 1,251 images.
        validation_shards: Number of validation shards; defaults to one per 781 images.
        seed: Seed of the order in which samples are packed, and of the hold-out.
        workers: Number of processes; defaults to one per core. Does not change the shards.
        layout: Layout of the source; detected by default.
        restart_blocks: Number of MCUs between restart markers, which are added losslessly; none for
            no markers; auto chooses by image width, leaves out images with a side under 96 px, and
            needs jpegtran.
        resize: Scale larger images down: short=256 limits the shorter side, max=500 the longer.
        quality: JPEG quality of resized images.
        recode: JPEG quality at which every image is encoded anew, smaller ones than --resize
            scales too, in 4:2:0 or gray. By default only what has to be changed is encoded.
        on_corrupt: What to do with a file that cannot be decoded: stop, or skip it.
        check: Decode every image once, or read only its header.
        metadata: Also write a KEY.json for each image.
        train_only: Leave out the validation images, or do without.
        holdout: Fraction of the training images of each class that becomes the validation split,
            for a source without one.
        cache: Folder that keeps remote shards on this machine while they are read.
        image_column: Column of the images in parquet files, where several could be.
        label_column: Column of the labels in parquet files, where several could be.
        label_names: File with the name of each label in parquet files that have only numbers, a
            line each from label 0.
    """
    if restart_blocks == "auto" and not is_installed():
        print("jpegtran (libjpeg-turbo-progs) is not installed: packing without restart markers")
        restart_blocks = "none"
    options = PackOptions(
        dataset=dataset,
        seed=seed,
        train_shards=train_shards,
        validation_shards=validation_shards,
        resize=resize,
        quality=quality,
        recode=recode,
        restart_blocks=None if restart_blocks == "none" else restart_blocks,
        metadata=metadata,
        check=check,
        on_corrupt=on_corrupt,
        train_only=train_only,
    )
    found = read_source(
        source,
        layout,
        train_only=train_only,
        holdout=holdout,
        seed=seed,
        cache=cache,
        image_column=image_column,
        label_column=label_column,
        label_names=label_names,
    )
    packed = pack_source(found, out, options, _num_workers(workers))
    print(_summary(packed, out))
    for line in _not_packed(found, out):
        print(line)
    return 0


def _not_packed(source: Source, out: Path) -> Iterator[str]:
    """Yield a line for each note, kind of skipped file, image of both splits, and so on."""
    yield from (f"note: {note}" for note in source.notes)
    audit = read_audit(out)
    splits = audit.get("splits", {}).values()
    if num_small := sum(split.get("num_without_markers", 0) for split in splits):
        yield (
            f"without restart markers: {counted(num_small, 'image')} with a side under "
            f"{LEAST_SIDE} px, where they cannot pay"
        )
    skipped = audit.get("skipped", [])
    if skipped:
        yield f"skipped: {len(skipped):,} files, such as {skipped[0]['path']} (see audit.md)"
    groups = audit.get("duplicates", [])
    in_both = [group for group in groups if len({row["split"] for row in group}) > 1]
    if in_both:
        yield (
            f"note: {counted(len(in_both), 'image')} of validation, such as "
            f"{in_both[0][-1]['key']}, {'is' if len(in_both) == 1 else 'are'} also in train, byte "
            "for byte (see audit.md)"
        )
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


def _summary(packed: Packed, out: Path) -> str:
    """Describe the shards in the output folder, and whether this run made them."""
    samples = ", ".join(
        f"{split.num_samples:,} {name} samples in {len(split.shards):,} shards"
        for name, split in packed.manifest.splits.items()
    )
    if packed.num_made:
        return f"packed {packed.manifest.dataset} into {out}: {samples}"
    return f"{out} is already packed; names and sizes match: {samples}"


def verify(
    shards: str, quick: bool = False, workers: int | None = None, cache: Path | None = None
) -> int:
    """Compare shards with their manifest. Exits with code 1 if they differ.

    Args:
        shards: Folder of the manifest: a path or an address.
        quick: Check only names and sizes (and what the Hub says the sha256 is), not contents.
        workers: Number of shards read in parallel; defaults to one per core.
        cache: Folder that keeps remote shards on this machine; without --quick, they are downloaded
            into it.
    """
    threads = _num_workers(workers)
    findings = verify_shards(
        shards, quick=quick, cache=cache, num_threads=threads, show_progress=True
    )
    for finding in findings:
        print(finding)
    if findings:
        files = len({finding.file for finding in findings})
        print(f"{shards}: {len(findings)} problems in {files} files")
        return EXIT_FOUND_SOMETHING
    print(f"{shards} is whole ({'names and sizes' if quick else 'every byte'})")
    return 0


def index(
    shards: str,
    out: Path | None = None,
    cache: Path | None = None,
    cache_gb: float = 100.0,
    train: str | None = None,
    validation: str | None = None,
    label_key: str | None = None,
    on_corrupt: Literal["stop", "skip"] = "stop",
    dataset: str | None = None,
    mapping: Path | None = None,
    force: bool = False,
    workers: int | None = None,
) -> int:
    """Write a manifest for existing WebDataset shards, anywhere. Run it again to resume.

    Args:
        shards: Folder of the shards: a path (read-only if --out is given), https://, s3://, or
            hf://datasets/OWNER/NAME[@REVISION].
        out: Output folder of the manifest; defaults to SHARDS, if that is a local folder.
        cache: Folder that keeps remote shards on this machine, where training finds them.
        cache_gb: How much space the shards in --cache may take, GB.
        train: Names of the training shards, if the names do not say so: '*.tar',
            'train/{0000..0123}.tar', relative to SHARDS.
        validation: Names of the validation shards.
        label_key: Field of the samples' .json that holds the label: a class index or a class name.
            By default .cls, the field label, and wnids count, and must agree.
        on_corrupt: What to do if samples have no image, no label or an image that cannot be read:
            stop and write nothing, or skip them.
        dataset: Name of the data set; defaults to the prefix of the shards' names.
        mapping: File with the class names: LOC_synset_mapping.txt, classes.json or Keras'
            imagenet_class_index.json; searched for in SHARDS by default.
        force: Overwrite an intact manifest.
        workers: Number of shards read in parallel; defaults to one per core, and at least 8 if
            SHARDS is an address.
    """
    require_at_least("--cache-gb", cache_gb, 0)
    num_threads = _num_workers(workers)
    if workers is None and is_address(shards):
        num_threads = max(num_threads, _REMOTE_STREAMS)
    options = IndexOptions(
        train=train,
        validation=validation,
        label_key=label_key,
        on_corrupt=on_corrupt,
        dataset=dataset,
        mapping=mapping,
        force=force,
    )
    manifest = index_shards(
        shards,
        options,
        out=out,
        cache=cache,
        limit_bytes=int(cache_gb * 1e9),
        num_threads=num_threads,
    )
    for name, split in manifest.splits.items():
        print(f"{name}: {split.num_samples:,} samples in {len(split.shards):,} shards")
    return 0


def subset(
    shards: str,
    out: Path,
    classes: str | None = None,
    num_classes: int | None = None,
    images_per_class: int | None = None,
    fraction: float | None = None,
    holdout: float | None = None,
    train_only: bool = False,
    validation_only: bool = False,
    seed: int = 0,
    dataset: str | None = None,
    cache: Path | None = None,
) -> int:
    """Write a manifest of part of the samples. Copies no image; SHARDS may be a subset, too.

    Args:
        shards: Folder of the manifest to select from: a path or an address.
        out: Output folder for the new manifest.
        classes: imagenet100, imagenette, imagewoof, or a file with a wnid (or class name) per line,
            or a classes.json.
        num_classes: Number of classes chosen at random.
        images_per_class: Largest number of training images per class.
        fraction: Fraction of the training images of each class.
        holdout: Fraction of the training images of each class that becomes the validation split.
        train_only: Leave out the validation split of SHARDS.
        validation_only: Leave out the training split.
        seed: Seed of the choice of classes and images.
        dataset: Name of the subset; defaults to the name of the output folder.
        cache: Folder that keeps remote shards on this machine.
    """
    selection = Selection(
        classes=classes,
        num_classes=num_classes,
        images_per_class=images_per_class,
        fraction=fraction,
        holdout=holdout,
        train_only=train_only,
        validation_only=validation_only,
        seed=seed,
    )
    view = make_subset(shards, out, selection, dataset=dataset, cache=cache)
    for name, split in view.splits.items():
        print(f"{name}: {split.num_samples:,} samples in {len(split.shards):,} shards")
    return 0


def audit(shards: Path) -> int:
    """Print the audit: counts, changed and skipped images, duplicates, sizes.

    Args:
        shards: Folder of the shards.
    """
    print(read_report(shards), end="")
    return 0


def sample(
    shards: str,
    out: Path = Path("samples.png"),
    split: Literal["train", "validation"] = "train",
    num: int = 24,
    seed: int = 0,
    cache: Path | None = None,
) -> int:
    """Write a PNG of random samples with their class names.

    Args:
        shards: Folder of the manifest: a path or an address.
        out: Path of the PNG.
        split: Split to sample from.
        num: Number of samples.
        seed: Seed of the choice of samples.
        cache: Folder that keeps remote shards on this machine.
    """
    keys = write_sheet(
        open_shards(shards, cache=cache), out, split=split, num_samples=num, seed=seed
    )
    print(f"{out}: {len(keys)} samples")
    return 0


def _num_workers(asked: int | None) -> int:
    """Return the asked number of workers, or one per core."""
    if asked is not None:
        require_at_least("--workers", asked, 1)
    return asked or os.cpu_count() or 1


def main() -> None:
    """Parse the command line and run one command."""
    import tyro  # only here: packing workers import this module, too

    print_version_and_exit(sys.argv[1:])
    commands = {f.__name__: f for f in (pack, verify, index, subset, audit, sample)}
    description = (__doc__ or "").partition("\n")[0]
    with exit_on_input_error():
        try:
            code = tyro.extras.subcommand_cli_from_dict(
                commands, prog="shard_imagenet.py", description=description
            )
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
