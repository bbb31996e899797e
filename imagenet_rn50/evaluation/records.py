"""What is kept of each image: enough for every figure of a report, and never all logits.

A table has one row an image, whose first column counts how often the image was seen. Ranks fill in
the rows of the images that they saw and leave zeros elsewhere; the tables of all ranks add up to
the whole, in which every image must have been seen once (contract 4).

One row of results: a set of images, seen through one transform, counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagenet_rn50.evaluation.metrics import top_classes
from imagenet_rn50.evaluation.statistics import Calibration, Interval, calibration, wilson
from imagenet_rn50.utils.errors import InputError

_SEEN, _LOSS, _CONFIDENCE, _TOP = 0, 1, 2, 3


def rows_of(logits: Tensor, labels: Tensor, subset: Tensor | None = None) -> Tensor:
    """Make the rows of one batch, on the device where it is.

    Args:
        logits: (B, C) float.
        labels: True classes; (B,) int64.
        subset: The classes that may be named, sorted, where these are not all; (S,) int64. All
            other logits are left out before the softmax.

    Returns:
        (B, 3 + k) float64, k = min(5, C or S): 1, loss in nats, confidence in [0, 1], classes
        named, best first.
    """
    if subset is not None:
        logits, labels = logits[:, subset], torch.searchsorted(subset, labels)
    log_probabilities = logits.double().log_softmax(1)
    top = top_classes(logits)
    confidence = log_probabilities.gather(1, top[:, :1]).exp()
    loss = -log_probabilities.gather(1, labels[:, None])
    named = top if subset is None else subset[top]
    return torch.cat([torch.ones_like(loss), loss, confidence, named.double()], dim=1)


@dataclass(frozen=True)
class Records:
    """What a model said of each image of a set, in the order of the set.

    Args:
        top: Classes that it named, best first; (n, k) int64, k up to 5.
        confidence: Probability that it gave the first of them, in [0, 1]; (n,) float64.
        loss: Cross-entropy, nats; (n,) float64.
    """

    top: NDArray[np.int64]
    confidence: NDArray[np.float64]
    loss: NDArray[np.float64]

    @classmethod
    def of(cls, table: Tensor) -> Self:
        """Read the table that all ranks filled in together.

        Args:
            table: (n, 3 + k) float64.

        Raises:
            RuntimeError: When an image was not seen exactly once.
            InputError: When the model's logits are not numbers.
        """
        rows = table.numpy()
        seen = rows[:, _SEEN]
        if (seen != 1).any():
            wrong = np.flatnonzero(seen != 1)
            raise RuntimeError(f"image {wrong[0]} was counted {seen[wrong[0]]:.0f} times, not once")
        records = cls(rows[:, _TOP:].astype(np.int64), rows[:, _CONFIDENCE], rows[:, _LOSS])
        if not np.isfinite(records.confidence).all():
            raise InputError(
                "the model's logits are not finite",
                found=f"nan or inf on {(~np.isfinite(records.confidence)).sum()} images",
                fix="evaluate a checkpoint from before the run diverged",
            )
        return records


@dataclass(frozen=True)
class Result:
    """How often a model was right about a set of images.

    Args:
        name: What was counted: `validation`, `real`, the name of a test set's folder.
        transform: What prepared the pictures: `training` or `processor`.
        flip: Whether logits were averaged with those of the mirrored picture.
        num_images: Number of images counted.
        hits1: For how many the first class named was right.
        hits5: For how many one of the first five was right.
        loss: Mean cross-entropy, nats; None where several classes may be right.
        calibration: How confidence and accuracy agree.
    """

    name: str
    transform: str
    flip: bool
    num_images: int
    hits1: int
    hits5: int
    loss: float | None
    calibration: Calibration

    @property
    def top1(self) -> float:
        """Part of the images that was right at first, in [0, 1]."""
        return self.hits1 / self.num_images

    @property
    def top5(self) -> float:
        """Part of the images that was right among the first five, in [0, 1]."""
        return self.hits5 / self.num_images

    @property
    def top1_interval(self) -> Interval:
        """95% interval of `top1`."""
        return wilson(self.hits1, self.num_images)

    @property
    def top5_interval(self) -> Interval:
        """95% interval of `top5`."""
        return wilson(self.hits5, self.num_images)

    def as_dict(self) -> dict[str, Any]:
        """Return the row for metrics.json."""
        (low1, high1), (low5, high5) = self.top1_interval, self.top5_interval
        return {
            "name": self.name,
            "transform": self.transform,
            "flip": self.flip,
            "num_images": self.num_images,
            "top1": self.top1,
            "top1_low": low1,
            "top1_high": high1,
            "top5": self.top5,
            "top5_low": low5,
            "top5_high": high5,
            "loss": self.loss,
            "ece": self.calibration.ece,
        }


def result_of(
    name: str,
    transform: str,
    *,
    flip: bool,
    records: Records,
    truths: NDArray[np.int64] | Sequence[frozenset[int]],
) -> Result:
    """Count the correct predictions.

    Args:
        name: What is counted.
        transform: What prepared the pictures.
        flip: Whether logits were averaged with those of the mirrored picture.
        records: What the model said of each image.
        truths: The true class of each image, (n,) int64; or the classes that are true of each,
            where images with none are left out.
    """
    top, confidence, loss = records.top, records.confidence, float(records.loss.mean())
    if isinstance(truths, np.ndarray):
        hits, mean_loss = top == truths[:, None], loss
    else:
        counted = np.array([bool(fitting) for fitting in truths])
        top, confidence, mean_loss = top[counted], confidence[counted], None
        fitting_classes = [fitting for fitting in truths if fitting]
        pairs = zip(top.tolist(), fitting_classes, strict=True)
        hits = np.array([[c in fitting for c in named] for named, fitting in pairs])
    return Result(
        name=name,
        transform=transform,
        flip=flip,
        num_images=len(top),
        hits1=int(hits[:, 0].sum()),
        hits5=int(hits.any(1).sum()),
        loss=mean_loss,
        calibration=calibration(confidence, hits[:, 0]),
    )
