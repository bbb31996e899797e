"""Pictures as the users of a model get them: decoded by Pillow, prepared by its own processor."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor

from imagenet_rn50.errors import InputError
from imagenet_rn50.jpeg import central_box
from imagenet_rn50.orientation import orientation_of, upright

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
