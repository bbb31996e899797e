"""Pictures that are files of their own instead of members of shards: test sets as handed out.

The same stages as for shards follow, so that a picture counts alike from either.

Pictures as the users of a model get them: decoded by Pillow, prepared by its own processor.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info
from transformers.image_processing_utils import BaseImageProcessor

from imagenet_rn50.data.dataset import Collate, DecodeAndTransform, DistributedBatchSampler, Sample
from imagenet_rn50.data.loader import Loader
from imagenet_rn50.data.reader import SampleError
from imagenet_rn50.data.transforms import Transform
from imagenet_rn50.jpeg.decode import central_box
from imagenet_rn50.jpeg.orientation import orientation_of, upright
from imagenet_rn50.shards.images import BadImageError, repair
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.base import SourceImage
from imagenet_rn50.utils.errors import InputError

_OPTIONS = PackOptions(restart_blocks=None)


def read_picture(root: Path, picture: SourceImage) -> bytes:
    """Returns a picture as RGB or gray JPEG, repaired as packing does where it is damaged.

    Its EXIF orientation stays: transforms turn the pixels, which turning the JPEG might change.

    Args:
        root: The folder that its path begins in.
        picture: A whole file.

    Raises:
        SampleError: When it cannot be read or decoded.
    """
    path = root / picture.path
    try:
        return repair(path.read_bytes(), _OPTIONS).jpeg
    except (OSError, BadImageError) as error:
        raise SampleError(f"the picture {path} cannot be used", found=str(error)) from None


@dataclass(frozen=True)
class FileSource:
    """Source stage: yields this worker's pictures in order, as `stages.ReadSamples` does.

    Args:
        root: The folder that paths begin in.
        images: What is at each position.
        share: Which positions are this rank's.
    """

    root: Path
    images: Sequence[SourceImage]
    share: DistributedBatchSampler

    def __call__(self) -> Iterator[Sample]:
        """Yields samples, batch after batch."""
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for start in self.share.starts[number::num_workers]:
            rows = self.share.count_at(start)
            for row, picture in enumerate(self.images[start : start + rows]):
                yield {
                    "__key__": picture.key,
                    "jpg": read_picture(self.root, picture),
                    "cls": picture.label,
                    "epoch": 0,
                    "index": start + row,
                    "place": f"the picture {self.root / picture.path}",
                    "row": row,
                    "rows": rows,
                }


def make_file_loader(
    root: Path,
    images: Sequence[SourceImage],
    share: DistributedBatchSampler,
    transform: Transform,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Loader:
    """Makes the loader of one rank over files; see `loader.make_loader`."""
    pipeline = wds.DataPipeline(
        FileSource(root, images, share), DecodeAndTransform(transform), Collate()
    )
    return Loader(pipeline, num_workers=num_workers, pin_memory=pin_memory)


_ANY_PICTURE = Image.new("RGB", (64, 48))


@dataclass(frozen=True)
class ProcessorTransform:
    """What `pipeline("image-classification", ...)` does to a picture before the model sees it.

    Args:
        processor: The one that is shipped with the model.
        size: Side of its results, px.
    """

    processor: BaseImageProcessor
    size: int
    dtype: ClassVar[torch.dtype] = torch.float32

    @classmethod
    def of(cls, processor: BaseImageProcessor) -> ProcessorTransform:
        """Makes the transform of a processor, whose size it finds out by using it.

        Raises:
            InputError: When its results are not square.
        """
        height, width = processor(_ANY_PICTURE, return_tensors="pt").pixel_values.shape[-2:]
        if height != width:
            raise InputError(
                "the model's processor makes pictures that cannot be batched",
                expected="squares of one size",
                found=f"{height} x {width} px of a picture of {_ANY_PICTURE.size}",
            )
        return cls(processor, height)

    def size_at(self, epoch: int) -> int:
        """Returns the side of the result, px: the same in every epoch."""
        return self.size

    def __call__(self, content: bytes, epoch: int, index: int, out: Tensor | None = None) -> Tensor:
        """Returns the normalised pixels of a picture, turned upright by its EXIF; see `Transform`.

        The processor would resize all of a very elongated picture before it crops; so it is given
        the center alone, see `jpeg.central_box`.

        Raises:
            ValueError: When Pillow cannot decode it.
        """
        try:
            with Image.open(io.BytesIO(content)) as picture:
                stored = np.asarray(picture.convert("RGB"))
                pixels = upright(stored, orientation_of(picture))
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(str(error)) from None
        top, left, height, width = central_box(*pixels.shape[:2])
        bounded = Image.fromarray(pixels[top : top + height, left : left + width])
        values: Tensor = self.processor(bounded, return_tensors="pt").pixel_values[0]
        return values if out is None else out.copy_(values)
