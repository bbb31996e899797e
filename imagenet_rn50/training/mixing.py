"""Mixup and CutMix, on the device, drawn from (seed, position): the same on any layout."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from imagenet_rn50.recipe import Recipe

_MIXING_STREAM = 2


def mix(pictures: Tensor, targets: Tensor, recipe: Recipe, position: int) -> tuple[Tensor, Tensor]:
    """Mixes each picture of a micro batch with the one that stands opposite.

    Mixup (Zhang et al. 2018) adds the two with weights from a Beta distribution; CutMix (Yun et al.
    2019) pastes a box of the other, whose area is drawn from one. Targets are mixed alike.

    Args:
        pictures: (B, 3, H, W) float, normalised.
        targets: Distributions over classes; (B, C) float.
        recipe: Says what is on, and how much.
        position: Where the micro batch begins in the training stream.

    Returns:
        Pictures and targets of the same shapes; as they were, when the recipe does not mix.
    """
    if not (recipe.mixup_alpha or recipe.cutmix_alpha):
        return pictures, targets
    entropy = np.random.SeedSequence([recipe.seed, position, _MIXING_STREAM])
    draws = np.random.Generator(np.random.Philox(entropy))
    use_cutmix = bool(recipe.cutmix_alpha) and (not recipe.mixup_alpha or draws.random() < 0.5)
    alpha = recipe.cutmix_alpha if use_cutmix else recipe.mixup_alpha
    weight = float(draws.beta(alpha, alpha))
    if use_cutmix:
        pictures, weight = _paste(pictures, weight, draws)
    else:
        pictures = pictures.lerp(pictures.flip(0), 1 - weight)
    return pictures, targets.lerp(targets.flip(0), 1 - weight)


def _paste(pictures: Tensor, weight: float, draws: np.random.Generator) -> tuple[Tensor, float]:
    """Pastes a box of the opposite pictures, and returns what part of the own is left."""
    height, width = pictures.shape[-2:]
    side = math.sqrt(1 - weight)
    middle_y, middle_x = int(draws.integers(height)), int(draws.integers(width))
    half_height, half_width = round(height * side / 2), round(width * side / 2)
    top, bottom = max(middle_y - half_height, 0), min(middle_y + half_height, height)
    left, right = max(middle_x - half_width, 0), min(middle_x + half_width, width)
    mixed = torch.clone(pictures, memory_format=torch.preserve_format)
    mixed[..., top:bottom, left:right] = pictures.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
