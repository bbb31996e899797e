"""Loss, label smoothing, mixup and CutMix.

The loss is computed outside the model: transformers' own has no label smoothing. Mixing is seeded
by (seed, position in the training stream), so that it is the same for any number of ranks.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from imagenet_rn50.recipe import Recipe

_MIXING_STREAM = 2

LABELS = {
    "cross_entropy": "cross-entropy, nats",
    "bce": "binary cross-entropy, mean over classes, nats",
}
"""Name and unit of each loss, for plots."""


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return targets with `smoothing` of the mass spread over all classes (Szegedy et al. 2016).

    Args:
        labels: True classes; (B,) int64.
        num_classes: Number of classes, C.
        smoothing: Mass taken from the true class, in [0, 1].

    Returns:
        (B, C) float32; rows sum to one.
    """
    one_hot = functional.one_hot(labels, num_classes).float()
    return one_hot * (1 - smoothing) + smoothing / num_classes


def training_loss(logits: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
    """Return the mean loss of a micro batch.

    Args:
        logits: (B, C) float.
        targets: True classes, (B,) int64; or their distribution, (B, C) float, already smoothed.
        recipe: Its loss, threshold and label smoothing.

    Returns:
        A scalar: cross-entropy in nats; for `bce` the mean over images and classes (Wightman et
        al. 2021, "ResNet strikes back", section 2.2).
    """
    if recipe.loss == "bce":
        if targets.ndim == 1:
            targets = smooth_targets(targets, logits.shape[1], recipe.label_smoothing)
        if recipe.bce_threshold is not None:
            targets = (targets > recipe.bce_threshold).to(targets.dtype)
        return functional.binary_cross_entropy_with_logits(logits, targets)
    smoothing = recipe.label_smoothing if targets.ndim == 1 else 0.0
    return functional.cross_entropy(logits, targets, label_smoothing=smoothing)


def mix(images: Tensor, targets: Tensor, recipe: Recipe, position: int) -> tuple[Tensor, Tensor]:
    """Mix each image i of a micro batch of B with image B - 1 - i.

    Mixup (Zhang et al. 2018) blends the two with a weight from a Beta distribution; CutMix (Yun et
    al. 2019) pastes a box of the other image, whose area is from a Beta distribution. Targets are
    mixed in the same proportion.

    Args:
        images: (B, 3, H, W) float, normalised.
        targets: Distributions over classes; (B, C) float.
        recipe: Its mixup_alpha, cutmix_alpha and seed.
        position: Where the micro batch begins in the training stream.

    Returns:
        Images and targets of the same shapes; unchanged if the recipe does not mix.
    """
    if not (recipe.mixup_alpha or recipe.cutmix_alpha):
        return images, targets
    entropy = np.random.SeedSequence([recipe.seed, position, _MIXING_STREAM])
    rng = np.random.Generator(np.random.Philox(entropy))
    use_cutmix = bool(recipe.cutmix_alpha) and (not recipe.mixup_alpha or rng.random() < 0.5)
    alpha = recipe.cutmix_alpha if use_cutmix else recipe.mixup_alpha
    weight = float(rng.beta(alpha, alpha))
    if use_cutmix:
        images, weight = _paste(images, weight, rng)
    else:
        images = images.lerp(images.flip(0), 1 - weight)
    return images, targets.lerp(targets.flip(0), 1 - weight)


def _paste(images: Tensor, weight: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Paste a box of the other images; return the images and the fraction that is still theirs."""
    height, width = images.shape[-2:]
    side = math.sqrt(1 - weight)
    center_y, center_x = int(rng.integers(height)), int(rng.integers(width))
    half_height, half_width = round(height * side / 2), round(width * side / 2)
    top, bottom = max(center_y - half_height, 0), min(center_y + half_height, height)
    left, right = max(center_x - half_width, 0), min(center_x + half_width, width)
    mixed = torch.clone(images, memory_format=torch.preserve_format)
    mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
