"""The loss, computed outside the model: transformers' own knows no label smoothing."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from imagenet_rn50.recipe import Recipe

LABELS = {
    "cross_entropy": "cross-entropy, nats",
    "bce": "binary cross-entropy, mean over classes, nats",
}
"""What each loss is called in plots, with its unit."""


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Returns targets with `smoothing` of the mass spread over all classes (Szegedy et al. 2016).

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
    """Returns the mean loss of a micro batch.

    Args:
        logits: (B, C) float.
        targets: True classes, (B,) int64; or their distribution, (B, C) float, already smoothed.
        recipe: Says which loss, and how labels are smoothed.

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
