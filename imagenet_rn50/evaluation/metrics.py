"""Count correct predictions exactly: integer sums, divided once at the end (contract 4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from imagenet_rn50.classes import TOP_K
from imagenet_rn50.utils.formatting import counted, percent


@dataclass(frozen=True)
class Accuracy:
    """Accuracy and loss on a split.

    Attributes:
        top1: Top-1 accuracy, in [0, 1].
        top5: Top-5 accuracy, in [0, 1].
        loss: Mean cross-entropy, nats.
        num_images: Number of images counted.
    """

    top1: float
    top5: float
    loss: float
    num_images: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, in order, for a metrics file."""
        return dict(vars(self))

    def describe(self, num_classes: int) -> str:
        """Return one line of text, without top-5 if there are at most five classes."""
        top5 = f", top-5 {percent(self.top5)}" if num_classes > TOP_K else ""
        images = counted(self.num_images, "image")
        return f"top-1 {percent(self.top1)}{top5}, loss {self.loss:.4f} on {images}"


def top_classes(logits: Tensor) -> Tensor:
    """Return the most likely classes of each image, best first.

    Args:
        logits: (B, C) float.

    Returns:
        (B, min(5, C)) int64.
    """
    return logits.topk(min(TOP_K, logits.shape[1])).indices


@cache
def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 for devices without it, such as Apple's mps."""
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):
        return torch.float32
    return torch.float64


def count_correct(hits: Tensor | NDArray[np.bool_]) -> tuple[Any, Any]:
    """Count images that are right by top-1 and by top-5; every accuracy comes from here.

    Args:
        hits: Whether each prediction, best first, is right; (n, k) bool, k up to 5.

    Returns:
        Both counts, integers of the kind of `hits`: tensors on its device, or NumPy's.
    """
    return hits[:, 0].sum(), hits.any(1).sum()


def count(logits: Tensor, labels: Tensor) -> Tensor:
    """Count one batch, on its device.

    Args:
        logits: (B, C) float.
        labels: True classes; (B,) int64.

    Returns:
        (4,) `widest_float`: correct by top-1, correct by top-5, sum of losses, images. Counts of
        batches and ranks may be added in any order: float32 holds numbers of images up to
        2^24 exactly.
    """
    dtype = widest_float(logits.device)
    hits = top_classes(logits) == labels[:, None]
    loss = functional.cross_entropy(logits.float(), labels, reduction="none")
    sums = [*count_correct(hits), loss.to(dtype).sum(), torch.ones_like(labels).sum()]
    return torch.stack([value.to(dtype) for value in sums])


def accuracy_of(counts: Tensor, expected_images: int) -> Accuracy:
    """Divide the summed counts.

    Args:
        counts: Sum of `count` over all batches of all ranks; (4,) float.
        expected_images: Size of the split.

    Raises:
        RuntimeError: If another number of images was counted.
    """
    first, five, loss, images = counts.tolist()
    if images != expected_images:
        raise RuntimeError(f"counted {images:.0f} images instead of {expected_images}")
    return Accuracy(first / images, five / images, loss / images, int(images))
