"""Images that are files instead of members of shards: test sets as they are distributed.

The same stages follow as for shards, so both count images alike. `ProcessorTransform` prepares
images as users of a published model do: decoded by Pillow, prepared by the model's own processor.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info
from transformers.image_processing_utils import BaseImageProcessor

from imagenet_rn50.data.dataset import Collate, DecodeAndTransform, Sample
from imagenet_rn50.data.loader import Loader
from imagenet_rn50.data.reader import SampleError
from imagenet_rn50.data.sampler import DistributedBatchSampler
from imagenet_rn50.data.transforms import Transform
from imagenet_rn50.jpeg.decode import central_box
from imagenet_rn50.jpeg.orientation import orientation_of, upright
from imagenet_rn50.shards.images import BadImageError, repair
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.base import SourceImage
from imagenet_rn50.utils.errors import InputError

_OPTIONS = PackOptions(restart_blocks=None)


def read_image(root: Path, image: SourceImage) -> bytes:
    """Return an image as RGB or gray JPEG; if it is damaged, repaired as packing does.

    Its EXIF orientation is kept: transforms turn the pixels, turning the JPEG may change them.

    Args:
        root: The folder that its path is relative to.
        image: A whole file.

    Raises:
        SampleError: If it cannot be read or decoded.
    """
    path = root / image.path
    try:
        return repair(path.read_bytes(), _OPTIONS).jpeg
    except (OSError, BadImageError) as error:
        raise SampleError(f"the image {path} cannot be used", found=str(error)) from None


@dataclass(frozen=True)
class FileSource:
    """Source stage: yield this worker's images in order, as `ReadSamples` does.

    Args:
        root: The folder that paths are relative to.
        images: The image at each position.
        sampler: Which positions this rank reads.
    """

    root: Path
    images: Sequence[SourceImage]
    sampler: DistributedBatchSampler

    def __call__(self) -> Iterator[Sample]:
        """Yield samples, batch after batch."""
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for start in self.sampler.starts[number::num_workers]:
            rows = self.sampler.size_at(start)
            for row, image in enumerate(self.images[start : start + rows]):
                yield {
                    "__key__": image.key,
                    "jpg": read_image(self.root, image),
                    "cls": image.label,
                    "epoch": 0,
                    "index": start + row,
                    "describe": partial("the image {}".format, self.root / image.path),
                    "row": row,
                    "rows": rows,
                }


def make_file_loader(
    root: Path,
    images: Sequence[SourceImage],
    sampler: DistributedBatchSampler,
    transform: Transform,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Loader:
    """Return the loader of one rank over files; see `loader.build_loader`."""
    pipeline = wds.DataPipeline(
        FileSource(root, images, sampler), DecodeAndTransform(transform), Collate()
    )
    return Loader(pipeline, num_workers=num_workers, pin_memory=pin_memory)


_ANY_IMAGE = Image.new("RGB", (64, 48))


@dataclass(frozen=True)
class ProcessorTransform:
    """Prepare an image as `pipeline("image-classification", ...)` does.

    Args:
        processor: The processor that is published with the model.
        size: Side of its results, px.
    """

    processor: BaseImageProcessor
    size: int
    dtype: ClassVar[torch.dtype] = torch.float32

    @classmethod
    def of(cls, processor: BaseImageProcessor) -> ProcessorTransform:
        """Return the transform of a processor, with the size of its results.

        Raises:
            InputError: If its results are not square.
        """
        height, width = processor(_ANY_IMAGE, return_tensors="pt").pixel_values.shape[-2:]
        if height != width:
            raise InputError(
                "the model's processor returns images that cannot be batched",
                expected="squares of one size",
                found=f"{height} x {width} px for an image of {_ANY_IMAGE.size}",
            )
        return cls(processor, height)

    def size_at(self, epoch: int) -> int:
        """Return the side of the result, px: the same in every epoch."""
        return self.size

    def __call__(self, content: bytes, epoch: int, index: int, out: Tensor | None = None) -> Tensor:
        """Return the normalised pixels of an image, turned upright by its EXIF; see `Transform`.

        The processor would resize all of a very elongated image before it crops, so it gets the
        center only; see `central_box`.

        Raises:
            ValueError: If Pillow cannot decode it.
        """
        try:
            with Image.open(io.BytesIO(content)) as image:
                stored = np.asarray(image.convert("RGB"))
                pixels = upright(stored, orientation_of(image))
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(str(error)) from None
        values = self.prepare(pixels)
        return values if out is None else out.copy_(values)

    def prepare(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return the normalised pixels, (3, size, size) float32, of an upright image, (h, w, 3)."""
        top, left, height, width = central_box(*pixels.shape[:2])
        bounded = Image.fromarray(pixels[top : top + height, left : left + width])
        values: Tensor = self.processor(bounded, return_tensors="pt").pixel_values[0]
        return values
