"""From JPEG bytes to the uint8 picture that is batched, and to the floats that the model sees.

What is random is drawn from (seed, epoch, sample index) alone: pixels do not depend on workers,
ranks or resumes, and there is no generator state to save.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from imagenet_rn50 import jpeg
from imagenet_rn50.recipe import DataRecipe

_AUGMENTATION_STREAM = 1
_MAX_CROP_TRIES = 10

Box = tuple[int, int, int, int]
"""Top, left, height, width, in px."""


def augmentation_draws(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Returns the generator that decides how sample `index` is augmented in `epoch`."""
    entropy = np.random.SeedSequence([seed, epoch, _AUGMENTATION_STREAM, index])
    return np.random.Generator(np.random.Philox(entropy))


def random_crop_box(
    draws: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Draws the box of a random resized crop (Szegedy et al. 2014; rule of torchvision's).

    Args:
        draws: Source of randomness.
        height: Height of the picture, px.
        width: Width of the picture, px.
        scale: Least and largest part of the area.
        ratio: Least and largest width / height, drawn log-uniformly.

    Returns:
        A box inside the picture; after ten misses, the largest central box of an allowed ratio.
    """
    for _ in range(_MAX_CROP_TRIES):
        area = height * width * draws.uniform(*scale)
        aspect = math.exp(draws.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(draws.integers(height - crop_height + 1))
            left = int(draws.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width = min(width, round(height * aspect))
    crop_height = min(height, round(width / aspect))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop and flip.

    Args:
        data: Sizes and ranges.
        seed: The recipe's seed.
    """

    data: DataRecipe
    seed: int

    @property
    def size(self) -> int:
        """Side of the result, px."""
        return self.data.train_size

    def __call__(self, content: bytes, epoch: int, index: int) -> Tensor:
        """Returns the augmented picture of a sample in an epoch; (3, size, size) uint8."""
        picture = _decode(content)
        draws = augmentation_draws(self.seed, epoch, index)
        height, width = picture.shape[1:]
        box = random_crop_box(draws, height, width, self.data.crop_scale, self.data.crop_ratio)
        side = self.data.train_size
        crop: Tensor = F.resized_crop(picture, *box, [side, side], antialias=True)
        return crop.flip(-1) if draws.random() < self.data.flip else crop


@dataclass(frozen=True)
class EvalTransform:
    """Resizes the shorter side to `resize`, then takes the central crop.

    Pixel for pixel what transformers' `BitImageProcessor` does, which is shipped with the model.

    Args:
        resize: Length of the shorter side before the crop, px.
        size: Side of the result, px; at most `resize`.
    """

    resize: int
    size: int

    def __call__(self, content: bytes, epoch: int, index: int) -> Tensor:
        """Returns the central crop of a picture, in any epoch; (3, size, size) uint8."""
        picture = _decode(content)
        height, width = picture.shape[1:]
        if height < width:
            height, width = self.resize, int(self.resize * width / height)
        else:
            height, width = int(self.resize * height / width), self.resize
        resized: Tensor = F.resize(picture, [height, width], antialias=True)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return resized[:, top : top + self.size, left : left + self.size]


def normalise(
    pictures: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """Turns a batch of pictures into what the model takes, on the device where they are.

    Args:
        pictures: (B, 3, H, W) uint8.
        mean: Mean of each RGB channel, of values in [0, 1].
        std: Standard deviation of each RGB channel, of values in [0, 1].

    Returns:
        (B, 3, H, W) float32, channels last.
    """
    scale = torch.tensor([1 / (255 * s) for s in std], device=pictures.device).view(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=pictures.device)
    floats = pictures.to(torch.float32, memory_format=torch.channels_last)
    return floats.mul_(scale).add_(shift.view(1, 3, 1, 1))


def _decode(content: bytes) -> Tensor:
    """Returns a JPEG's pixels, (3, H, W) uint8 over (H, W, 3) memory."""
    return torch.from_numpy(jpeg.decode(content)).permute(2, 0, 1)
