"""What a person chooses when packing. These, the source and the seed decide every byte."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from imagenet_rn50.errors import InputError

_DATASET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESIZE = re.compile(r"(short|max)=([1-9]\d{0,4})")


@dataclass(frozen=True)
class PackOptions:
    """How shards are made.

    Args:
        dataset: Begins the name of every shard; None for the name of the source's folder.
        seed: Decides the order in which samples are packed.
        train_shards: Number of training shards; None for one per 1,251 pictures.
        validation_shards: Number of validation shards; None for one per 781 pictures.
        resize: `short=256` scales the shorter side down to 256 px, `max=500` the longer side to
            500 px; smaller pictures stay as they are. None keeps every picture's pixels.
        quality: JPEG quality of pictures that are resized, 1 to 100.
        restart_blocks: MCUs between two restart markers; `auto` for the number that suits each
            picture's width best; None for no markers.
        metadata: Whether a `<key>.json` stands beside each picture.
        check: `decode` decodes every picture once; `header` reads its markers only.
        on_bad: What to do with a picture that cannot be decoded: `stop`, or leave it out (`skip`).
        train_only: Whether validation images were left out, or missing.
    """

    dataset: str | None = None
    seed: int = 0
    train_shards: int | None = None
    validation_shards: int | None = None
    resize: str | None = None
    quality: int = 95
    restart_blocks: int | Literal["auto"] | None = None
    metadata: bool = False
    check: Literal["decode", "header"] = "decode"
    on_bad: Literal["stop", "skip"] = "stop"
    train_only: bool = False

    def __post_init__(self) -> None:
        """Checks each option.

        Raises:
            InputError: Naming the first that cannot be used.
        """
        if self.dataset is not None and not _DATASET_NAME.fullmatch(self.dataset):
            raise InputError(
                f"the dataset name {self.dataset!r} cannot begin a file name",
                expected="letters, digits, - and _",
            )
        if self.seed < 0:
            raise InputError(f"the seed {self.seed} is negative", expected="0 or more")
        if self.resize is not None and not _RESIZE.fullmatch(self.resize):
            raise InputError(
                f"--resize {self.resize!r} is not understood", expected="short=256 or max=500"
            )
        if not 1 <= self.quality <= 100:
            raise InputError(f"the quality {self.quality} is impossible", expected="1 to 100")
        if isinstance(self.restart_blocks, int) and not 1 <= self.restart_blocks <= 65535:
            raise InputError(
                f"{self.restart_blocks} restart blocks are impossible", expected="1 to 65535"
            )

    @property
    def resize_rule(self) -> tuple[str, int] | None:
        """`resize` as (`short` or `max`, pixels)."""
        if self.resize is None:
            return None
        side, _, pixels = self.resize.partition("=")
        return side, int(pixels)

    def as_dict(self) -> dict[str, Any]:
        """Returns the options for the manifest."""
        return asdict(self)
