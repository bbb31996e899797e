"""Augmentations after the crop, by torchvision on uint8, drawn like everything else per sample.

torchvision draws from torch's global generator. It is seeded here from the sample's own draws, and
put back afterwards, so that nothing else notices.

From JPEG bytes to the uint8 picture that is batched, and to the floats that the model sees.

What is random is drawn from (seed, epoch, sample index) alone: pixels do not depend on workers,
ranks or resumes, and there is no generator state to save.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from imagenet_rn50.jpeg import decode as jpeg
from imagenet_rn50.jpeg.crop import Box
from imagenet_rn50.jpeg.header import JpegHeader, read_header
from imagenet_rn50.jpeg.orientation import stored_box, upright
from imagenet_rn50.recipe import DataRecipe


def augment(picture: Tensor, data: DataRecipe, draws: np.random.Generator) -> Tensor:
    """Augments a crop as the recipe says.

    Args:
        picture: (3, H, W) uint8.
        data: Says which augmentations are on.
        draws: The sample's source of randomness.

    Returns:
        (3, H, W) uint8; `picture` itself when none is on.
    """
    operations = _operations(data)
    if not operations:
        return picture
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(int(draws.integers(2**63)))
    try:
        for operation in operations:
            picture = operation(picture)
    finally:
        generator.set_state(before)
    return picture


@lru_cache(maxsize=8)
def _operations(data: DataRecipe) -> tuple[v2.Transform, ...]:
    """Returns the augmentations of a recipe, in the order of torchvision's reference script."""
    operations: list[v2.Transform] = []
    if data.auto_augment == "randaugment":
        one = v2.RandAugment(
            num_ops=1,
            magnitude=data.randaugment_magnitude,
            interpolation=v2.InterpolationMode.BILINEAR,
        )
        operations += [v2.RandomApply([one], data.randaugment_probability)] * 2
    elif data.auto_augment == "trivialaugment":
        operations.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR))
    if data.color_jitter:
        strength = data.color_jitter
        operations.append(v2.ColorJitter(strength, strength, strength))
    if data.erasing:
        # The mean, which is zero once the picture is normalised.
        operations.append(v2.RandomErasing(data.erasing, value=[255 * m for m in data.mean]))
    return tuple(operations)


_AUGMENTATION_STREAM = 1
_MAX_CROP_TRIES = 10


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


class Transform(Protocol):
    """From the bytes of a JPEG to the picture that goes into a batch."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the results: uint8, or float32 of pixels that are normalised already."""

    def size_at(self, epoch: int) -> int:
        """Returns the side of the results of a batch that begins in `epoch`, px."""

    def __call__(self, content: bytes, epoch: int, index: int, out: Tensor | None = None) -> Tensor:
        """Transforms one sample.

        Args:
            content: A JPEG.
            epoch: The epoch that shows it.
            index: Its sample index.
            out: Where to write; (3, size, size) of `dtype`, channels last, of the batch's size.
                None for new memory, of the epoch's size.

        Returns:
            (3, size, size) of `dtype`: `out` where it was given.

        Raises:
            ValueError: When the JPEG cannot be decoded.
        """


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, flip, and what other augmentations the recipe has.

    The crop is drawn from the size in the JPEG's header, before anything is decoded.

    Args:
        data: Sizes and ranges.
        seed: The recipe's seed.
    """

    data: DataRecipe
    seed: int
    dtype: ClassVar[torch.dtype] = torch.uint8

    def size_at(self, epoch: int) -> int:
        """Returns the side of the results of a batch that begins in `epoch`, px."""
        return self.data.size_at(epoch)

    def __call__(self, content: bytes, epoch: int, index: int, out: Tensor | None = None) -> Tensor:
        """Returns the augmented picture of a sample in an epoch; see `Transform`."""
        draws = augmentation_draws(self.seed, epoch, index)
        header = read_header(content, strict=True)
        size = self.size_at(epoch) if out is None else out.shape[-1]
        box, factor = self.draw_box(draws, header, size)
        stored = jpeg.decode_box(content, box, factor=factor, header=header)
        crop = upright(stored, header.orientation)
        flip = draws.random() < self.data.flip
        picture = resize(crop, (size, size), flip=flip, out=out)
        augmented = augment(picture, self.data, draws)
        return augmented if out is None or augmented is picture else out.copy_(augmented)

    def draw_box(
        self, draws: np.random.Generator, header: JpegHeader, size: int
    ) -> tuple[Box, int]:
        """Draws the crop of a picture, which is drawn from the upright one.

        Returns:
            The box in the stored picture, and by how much decoding shrinks it: where that is more
            than 1, the box is moved and cut to multiples of it, by less than that many px.
        """
        scale, ratio = self.data.crop_scale, self.data.crop_ratio
        box = random_crop_box(draws, *header.upright_size, scale, ratio)
        factor = jpeg.dct_factor(box, (size, size))
        box = stored_box(box, header.orientation, header.upright_size)
        top, left, height, width = (value - value % factor for value in box)
        return (top, left, height, width), factor


@dataclass(frozen=True)
class EvalTransform:
    """Resizes the shorter side to `resize`, then takes the central crop.

    Pixel for pixel what transformers' `BitImageProcessor` does, which is shipped with the model, to
    the upright image. Of very elongated images only the center is resized, see `jpeg.central_box`.

    Args:
        resize: Length of the shorter side before the crop, px.
        size: Side of the result, px; at most `resize`.
    """

    resize: int
    size: int
    dtype: ClassVar[torch.dtype] = torch.uint8

    def size_at(self, epoch: int) -> int:
        """Returns the side of the result, px: the same in every epoch."""
        return self.size

    def __call__(self, content: bytes, epoch: int, index: int, out: Tensor | None = None) -> Tensor:
        """Returns the central crop of a picture, in any epoch; see `Transform`."""
        pixels = jpeg.decode(content)
        top, left, height, width = jpeg.central_box(*pixels.shape[:2])
        pixels = pixels[top : top + height, left : left + width]
        if height < width:
            height, width = self.resize, int(self.resize * width / height)
        else:
            height, width = int(self.resize * height / width), self.resize
        resized = resize(pixels, (height, width))
        top, left = (height - self.size) // 2, (width - self.size) // 2
        crop = resized[:, top : top + self.size, left : left + self.size]
        return crop if out is None else out.copy_(crop)


def resize(
    pixels: NDArray[np.uint8],
    size: tuple[int, int],
    *,
    flip: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Resizes with antialiasing, as torchvision's `resize` and Pillow's BILINEAR do.

    Equal to torchvision's `resize` on the same machine, and so to the processor. On machines of
    different instruction sets, pixels may differ by one level: torch resizes uint8 in integers
    where it has AVX2 or Neon; elsewhere torchvision resizes in float32 and rounds.

    Args:
        pixels: (h, w, 3) uint8.
        size: Height and width of the result, px.
        flip: Whether to mirror it, left to right.
        out: Where to write; (3, H, W) uint8, channels last. None for new memory.

    Returns:
        (3, H, W) uint8, channels last: `out` where it was given.
    """
    picture = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    if out is None:
        out = torch.empty((*size, 3), dtype=torch.uint8).permute(2, 0, 1)
    if not _resizes_in_integers():
        resized = functional.resize(picture[0], list(size), antialias=True)
        return out.copy_(resized.flip(-1) if flip else resized)
    # The operator below torchvision's function, because only that writes into given memory.
    target = torch.empty_like(out[None]) if flip else out[None]
    torch.ops.aten._upsample_bilinear2d_aa.out(picture, size, False, None, None, out=target)
    if flip:
        out.copy_(target[0].flip(-1))
    return out


@cache
def _resizes_in_integers() -> bool:
    """Returns whether torchvision calls torch's uint8 operator here, found out by a probe."""
    pixels = torch.arange(3 * 64 * 64).mul_(7919).remainder_(251).to(torch.uint8)
    probe = pixels.view(1, 3, 64, 64)
    expected = functional.resize(probe, [23, 23], antialias=True)
    found = torch.ops.aten._upsample_bilinear2d_aa(probe, [23, 23], False, None, None)
    return torch.equal(found, expected)


def normalise(
    images: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """Turns a batch of pictures into what the model takes, on the device where they are.

    Args:
        images: (B, 3, H, W) uint8.
        mean: Mean of each RGB channel, of values in [0, 1].
        std: Standard deviation of each RGB channel, of values in [0, 1].

    Returns:
        (B, 3, H, W) float32, channels last.
    """
    scale, shift = _scale_and_shift(mean, std, images.device)
    floats = images.to(torch.float32, memory_format=torch.channels_last)
    return floats.mul_(scale).add_(shift)


@cache
def _scale_and_shift(
    mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns what `normalise` multiplies by and adds, (1, 3, 1, 1) each.

    Kept, for the host waits for a GPU while it brings them there.
    """
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale.view(1, 3, 1, 1), shift.view(1, 3, 1, 1)
