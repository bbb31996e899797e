"""From the bytes of a JPEG to the uint8 image in a batch, and to the floats that the model sees.

Everything random is drawn from (seed, epoch, sample index) alone: pixels do not depend on workers,
ranks or resumes, and there is no generator state to save. torchvision's augmentations draw from
torch's global generator, so it is seeded here from the sample's own rng, and restored afterwards.
"""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagenet_rn50.jpeg import decode as jpeg
from imagenet_rn50.jpeg.crop import Box
from imagenet_rn50.jpeg.header import JpegHeader, read_header
from imagenet_rn50.jpeg.orientation import stored_box, upright
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.utils.private_apis import resize_antialiased

if TYPE_CHECKING:  # importing it takes as long as importing torch, and only some recipes need it
    from torchvision.transforms import v2

_AUGMENTATION_STREAM = 1
_MAX_CROP_TRIES = 10


class Transform(Protocol):
    """Make the image of a batch from the bytes of a JPEG."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the results: uint8, or float32 if they are normalised already."""

    def size_at(self, epoch: int) -> int:
        """Return the side of the results of a batch that begins in `epoch`, px."""

    def __call__(self, content: bytes, epoch: int, index: int, out: Tensor | None = None) -> Tensor:
        """Transform one sample.

        Args:
            content: A JPEG.
            epoch: The epoch it is shown in.
            index: Its sample index.
            out: Where to write; (3, size, size) of `dtype`, channels last, of the batch's size.
                None for new memory, of the epoch's size.

        Returns:
            (3, size, size) of `dtype`: `out` if it was given.

        Raises:
            ValueError: If the JPEG cannot be decoded.
        """


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, flip, and the recipe's other augmentations.

    The crop is drawn from the size in the JPEG's header, before anything is decoded.

    Args:
        data: Sizes and ranges.
        seed: The recipe's seed.
    """

    data: DataRecipe
    seed: int
    dtype: ClassVar[torch.dtype] = torch.uint8

    def size_at(self, epoch: int) -> int:
        """Return the side of the results of a batch that begins in `epoch`, px."""
        return self.data.size_at(epoch)

    def __call__(self, content: bytes, epoch: int, index: int, out: Tensor | None = None) -> Tensor:
        """Return the augmented image of a sample in an epoch; see `Transform`."""
        rng = augmentation_rng(self.seed, epoch, index)
        header = read_header(content, strict=True)
        size = self.size_at(epoch) if out is None else out.shape[-1]
        box, factor = self.draw_box(rng, header, size)
        stored = jpeg.decode_box(content, box, factor=factor, header=header)
        crop = upright(stored, header.orientation)
        flip = rng.random() < self.data.flip
        image = resize(crop, (size, size), flip=flip, out=out)
        augmented = augment(image, self.data, rng)
        return augmented if out is None or augmented is image else out.copy_(augmented)

    def draw_box(self, rng: np.random.Generator, header: JpegHeader, size: int) -> tuple[Box, int]:
        """Draw the crop of an upright image.

        Returns:
            The box in the stored image, and the factor by which decoding shrinks it. If it is more
            than 1, the box is moved and cut to multiples of it, by less than that many px.
        """
        scale, ratio = self.data.crop_scale, self.data.crop_ratio
        box = random_crop_box(rng, *header.upright_size, scale, ratio)
        factor = jpeg.dct_factor(box, (size, size))
        box = stored_box(box, header.orientation, header.upright_size)
        top, left, height, width = (value - value % factor for value in box)
        return (top, left, height, width), factor


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side to `resize`, then take the central crop.

    Equal to the last bit to the `BitImageProcessor` that is published with the model, applied to
    the upright image. Of very elongated images only the center is resized; see `central_box`.

    Args:
        resize: Length of the shorter side before the crop, px.
        size: Side of the result, px; at most `resize`.
    """

    resize: int
    size: int
    dtype: ClassVar[torch.dtype] = torch.uint8

    def size_at(self, epoch: int) -> int:
        """Return the side of the result, px: the same in every epoch."""
        return self.size

    def __call__(self, content: bytes, epoch: int, index: int, out: Tensor | None = None) -> Tensor:
        """Return the central crop of an image, in any epoch; see `Transform`."""
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


def augmentation_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator that decides how sample `index` is augmented in `epoch`."""
    words: Any = [seed, epoch, _AUGMENTATION_STREAM, index]
    if max(words) < 1 << 32:
        words = np.array(words, np.uint32)  # the same entropy, without numpy's way to split ints
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def random_crop_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Draw the box of a random resized crop (Szegedy et al. 2014; rule of torchvision's).

    Args:
        rng: The sample's rng.
        height: Height of the image, px.
        width: Width of the image, px.
        scale: Least and largest part of the area.
        ratio: Least and largest width / height, drawn log-uniformly.

    Returns:
        A box inside the image; after ten misses, the largest central box of an allowed ratio.
    """
    for _ in range(_MAX_CROP_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width = min(width, round(height * aspect))
    crop_height = min(height, round(width / aspect))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def augment(image: Tensor, data: DataRecipe, rng: np.random.Generator) -> Tensor:
    """Augment a crop as the recipe says.

    Args:
        image: (3, H, W) uint8.
        data: Which augmentations are on.
        rng: The sample's rng.

    Returns:
        (3, H, W) uint8; `image` itself if none is on.
    """
    operations = _operations(data)
    if not operations:
        return image
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(int(rng.integers(2**63)))
    try:
        for operation in operations:
            image = operation(image)
    finally:
        generator.set_state(before)
    return image


@lru_cache(maxsize=8)
def _operations(data: DataRecipe) -> tuple[v2.Transform, ...]:
    """Return the augmentations of a recipe, in the order of torchvision's reference script."""
    if not (data.auto_augment or data.color_jitter or data.erasing):
        return ()
    from torchvision.transforms import v2

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
        # The mean, which is zero after normalising.
        operations.append(v2.RandomErasing(data.erasing, value=[255 * m for m in data.mean]))
    return tuple(operations)


def resize(
    pixels: NDArray[np.uint8],
    size: tuple[int, int],
    *,
    flip: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Resize with antialiasing, as torchvision's `resize` and Pillow's BILINEAR do.

    Equal to torchvision's `resize` on the same machine, and so to the processor. Between
    machines of different instruction sets, pixels may differ by one level: torch resizes uint8 in
    integers if it has AVX2 or Neon; otherwise torchvision resizes in float32 and rounds.

    Args:
        pixels: (h, w, 3) uint8.
        size: Height and width of the result, px.
        flip: Whether to mirror it, left to right.
        out: Where to write; (3, H, W) uint8, channels last. None for new memory.

    Returns:
        (3, H, W) uint8, channels last: `out` if it was given.
    """
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    if out is None:
        out = torch.empty((*size, 3), dtype=torch.uint8).permute(2, 0, 1)
    if not _resizes_in_integers():
        from torchvision.transforms.v2 import functional

        resized = functional.resize(image[0], list(size), antialias=True)
        return out.copy_(resized.flip(-1) if flip else resized)
    target = torch.empty_like(out[None]) if flip else out[None]
    resize_antialiased(image, size, out=target)
    if flip:
        out.copy_(target[0].flip(-1))
    return out


@cache
def _resizes_in_integers() -> bool:
    """Return whether torchvision resizes uint8 with torch's uint8 operator on this machine.

    Its own rule: `_do_native_uint8_resize_on_cpu` in torchvision/transforms/v2/functional.
    """
    has_operator = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}
    return has_operator or platform.machine() in {"aarch64", "arm64"}


def normalise(
    images: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """Normalise a batch of images, on the device where they are.

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
    """Return what `normalise` multiplies by and adds, (1, 3, 1, 1) each.

    Cached, because copying them to a GPU makes the host wait.
    """
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale.view(1, 3, 1, 1), shift.view(1, 3, 1, 1)
