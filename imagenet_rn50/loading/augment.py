"""Augmentations after the crop, by torchvision on uint8, drawn like everything else per sample.

torchvision draws from torch's global generator. It is seeded here from the sample's own draws, and
put back afterwards, so that nothing else notices.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

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
