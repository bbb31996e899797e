"""The packing options, and the plan: which image goes into which shard.

The plan is a pure function of source, options and seed, made before any image is read, so neither
the number of workers nor a restart changes a byte of the shards.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from imagenet_rn50.shards.imagenet1k import dataset_name, require_dataset_name
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION
from imagenet_rn50.shards.sources.base import ImageReader, Source, SourceImage
from imagenet_rn50.utils.errors import InputError

DEFAULT_QUALITY = 95  # of resized images
_RESIZE = re.compile(r"(short|max)=([1-9]\d{0,4})")


@dataclass(frozen=True)
class PackOptions:
    """How shards are made.

    Args:
        dataset: Begins the name of every shard; None for the name of the source's folder.
        seed: Decides the order in which samples are packed.
        train_shards: Number of training shards; None for one per 1,251 images.
        validation_shards: Number of validation shards; None for one per 781 images.
        resize: `short=256` scales the shorter side down to 256 px, `max=500` the longer side to
            500 px; smaller images stay as they are. None keeps every image's pixels.
        quality: JPEG quality of images that are resized, 1 to 100, unless `recode` is given.
        recode: JPEG quality at which every image, resized or not, is encoded anew, 1 to 100: 4:2:0,
            or gray where a JPEG is. None keeps the bytes of images that need no change.
        restart_blocks: MCUs between two restart markers; `auto` for the number that suits each
            image's width best; None for no markers.
        metadata: Whether to write a `<key>.json` for each image.
        check: `decode` decodes every image once; `header` reads its markers only.
        on_corrupt: What to do with an image that cannot be decoded: `stop` or `skip`.
        train_only: Whether the source is packed without validation images.
    """

    dataset: str | None = None
    seed: int = 0
    train_shards: int | None = None
    validation_shards: int | None = None
    resize: str | None = None
    quality: int = DEFAULT_QUALITY
    recode: int | None = None
    restart_blocks: int | Literal["auto"] | None = None
    metadata: bool = False
    check: Literal["decode", "header"] = "decode"
    on_corrupt: Literal["stop", "skip"] = "stop"
    train_only: bool = False

    def __post_init__(self) -> None:
        """Check each option.

        Raises:
            InputError: Naming the first that cannot be used.
        """
        if self.dataset is not None:
            require_dataset_name(self.dataset)
        if self.seed < 0:
            raise InputError(f"--seed must be at least 0, got {self.seed}")
        if self.resize is not None and not _RESIZE.fullmatch(self.resize):
            raise InputError(f"--resize must be like short=256 or max=500, got {self.resize!r}")
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality must be 1 to 100, got {self.quality}")
        if self.recode is not None:
            self._check_recode(self.recode)
        if isinstance(self.restart_blocks, int) and not 1 <= self.restart_blocks <= 65535:
            raise InputError(f"--restart-blocks must be 1 to 65535, got {self.restart_blocks}")

    def _check_recode(self, quality: int) -> None:
        if not 1 <= quality <= 100:
            raise InputError(f"--recode must be 1 to 100, got {quality}")
        if self.quality not in {DEFAULT_QUALITY, quality}:
            raise InputError(
                f"--quality {self.quality} and --recode {quality} are two JPEG qualities",
                expected="--recode alone, which sets the quality of resized images too",
                fix="leave out --quality",
            )

    @property
    def resize_rule(self) -> tuple[str, int] | None:
        """`resize` as (`short` or `max`, pixels)."""
        if self.resize is None:
            return None
        side, _, pixels = self.resize.partition("=")
        return side, int(pixels)

    def as_dict(self) -> dict[str, Any]:
        """Return the options for the manifest."""
        return asdict(self)


# As others pack ImageNet: 1,281,167 images in 1,024 shards and 50,000 in 64.
_IMAGES_A_SHARD = {TRAIN: 1251, VALIDATION: 781}
# Each split is permuted on its own, whether or not the other one exists.
STREAM = {TRAIN: 0, VALIDATION: 1}


@dataclass(frozen=True)
class ShardTask:
    """One shard to be made: everything that a worker needs.

    Args:
        split: `train` or `validation`.
        name: The shard's file name.
        root: The source's folder or address.
        layout: How the source is laid out.
        wnids: The wnid of each class index.
        images: What goes into it, in this order.
        options: How.
        spool: The file that holds the images' bytes, where they do not stand in the source.
        places: (offset, length) of each image in that file.
    """

    split: str
    name: str
    root: str
    layout: str
    wnids: tuple[str, ...]
    images: tuple[SourceImage, ...]
    options: PackOptions
    spool: str | None = None
    places: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Plan:
    """All shards to be made, and the identity of the whole.

    Args:
        tasks: The shards, training first.
        source_sha256: Over every image's key, class, place and size, and the classes' names; also
            over the source's fingerprint, where it has one.
        reader: Reads the images into temporary files, where they cannot be read in place.
    """

    tasks: tuple[ShardTask, ...]
    source_sha256: str
    reader: ImageReader | None = None


def make_plan(source: Source, options: PackOptions) -> Plan:
    """Assign every image to a shard.

    Raises:
        InputError: When more shards are asked for than there are images, or ImageNet-1k's name
            for other data.
    """
    options = with_dataset(options, source)
    asked = {TRAIN: options.train_shards, VALIDATION: options.validation_shards}
    digest = hashlib.sha256(json.dumps([source.classes.wnids, source.classes.names]).encode())
    digest.update((source.fingerprint or "").encode())
    tasks: list[ShardTask] = []
    for split, images in sorted(source.splits.items()):
        digest.update(split.encode())
        for image in images:
            digest.update(ascii(image[:5]).encode())
        num_shards = num_shards_of(split, len(images), asked[split])
        order = permutation(len(images), seed=options.seed, stream=STREAM[split])
        for shard, chosen in enumerate(np.array_split(order, num_shards)):
            task = ShardTask(
                split=split,
                name=shard_name(str(options.dataset), split, shard, num_shards),
                root=str(source.root),
                layout=source.layout,
                wnids=source.classes.wnids,
                images=tuple(images[index] for index in chosen),
                options=options,
            )
            tasks.append(task)
    return Plan(tuple(tasks), digest.hexdigest(), source.reader)


def with_dataset(options: PackOptions, source: Source) -> PackOptions:
    """Return options that name the data set; see `imagenet1k.dataset_name`.

    Raises:
        InputError: When they name ImageNet-1k, and the source is not.
    """
    num_images = {split: len(images) for split, images in source.splits.items()}
    name = dataset_name(
        options.dataset, source.default_name, source.classes, num_images, source.options
    )
    return replace(options, dataset=name)


def permutation(size: int, *, seed: int, stream: int) -> NDArray[np.intp]:
    """Return a permutation of 0..size-1 that no release of numpy may change.

    numpy promises that a bit generator's raw numbers stay the same, which it does not promise of
    `Generator.permutation`; so the order is that of raw numbers.

    Args:
        size: How many numbers.
        seed: The packing seed.
        stream: The number of the split, so that splits are permuted on their own.

    Returns:
        The permutation; (size,) int.
    """
    raw = np.random.PCG64(np.random.SeedSequence([seed, stream])).random_raw(size)
    return np.argsort(raw, kind="stable")


def shard_name(dataset: str, split: str, number: int, num_shards: int) -> str:
    """Return a shard's name, as other readers expect it: `imagenet1k-train-0412.tar`."""
    width = max(2, len(str(num_shards - 1)))
    return f"{dataset}-{split}-{number:0{width}d}.tar"


def num_shards_of(split: str, num_images: int, asked: int | None = None) -> int:
    """Return how many shards a split gets: as many as asked, else about as large as others' are.

    Raises:
        InputError: When more are asked for than there are images.
    """
    if asked is None:
        return max(1, round(num_images / _IMAGES_A_SHARD[split]))
    if not 1 <= asked <= num_images:
        raise InputError(
            f"{asked} {split} shards cannot be made of {num_images} images",
            expected=f"1 to {num_images} shards",
        )
    return asked
