"""Predictions of a model, and the results counted from them.

Only the five predicted classes, the confidence and the loss of each image are kept, not its logits.
Each rank fills in the rows of its images in a table of zeros. The tables of all ranks are summed,
and each image must have been seen exactly once (contract 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagenet_rn50.evaluation.metrics import count_correct, top_classes
from imagenet_rn50.evaluation.statistics import Calibration, Interval, calibration, wilson
from imagenet_rn50.utils.errors import InputError

_SEEN, _LOSS, _CONFIDENCE, _TOP = 0, 1, 2, 3


def rows_of(logits: Tensor, labels: Tensor, subset: Tensor | None = None) -> Tensor:
    """Return the table rows of one batch, on its device.

    Args:
        logits: (B, C) float.
        labels: True classes; (B,) int64.
        subset: The classes that may be predicted, sorted, (S,) int64; None for all. All other
            logits are dropped before the softmax.

    Returns:
        (B, 3 + k) float64, k = min(5, C or S): 1, loss in nats, confidence in [0, 1], predicted
        classes, best first.
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
class Predictions:
    """A model's predictions for the images of a set, in the order of the set.

    Args:
        top: Predicted classes, best first; (n, k) int64, k up to 5.
        confidence: Probability of the first of them, in [0, 1]; (n,) float64.
        loss: Cross-entropy, nats; (n,) float64.
    """

    top: NDArray[np.int64]
    confidence: NDArray[np.float64]
    loss: NDArray[np.float64]

    @classmethod
    def of(cls, table: Tensor) -> Self:
        """Read the summed table of all ranks.

        Args:
            table: (n, 3 + k) float64.

        Raises:
            RuntimeError: If an image was not seen exactly once.
            InputError: If the model's logits are not finite.
        """
        rows = table.numpy()
        seen = rows[:, _SEEN]
        if (seen != 1).any():
            wrong = np.flatnonzero(seen != 1)
            raise RuntimeError(f"image {wrong[0]} was counted {seen[wrong[0]]:.0f} times, not once")
        predictions = cls(rows[:, _TOP:].astype(np.int64), rows[:, _CONFIDENCE], rows[:, _LOSS])
        if not np.isfinite(predictions.confidence).all():
            raise InputError(
                "the model's logits are not finite",
                found=f"nan or inf on {(~np.isfinite(predictions.confidence)).sum()} images",
                fix="evaluate a checkpoint from before the run diverged",
            )
        return predictions


@dataclass(frozen=True)
class Result:
    """The accuracy of a model on a set of images.

    Args:
        name: Name of images and labels: `validation`, `real`, or the folder of a test set.
        transform: The transform: `training` or `processor`.
        flip: Whether logits are averaged over the image and its mirror image.
        num_images: Number of images counted.
        correct_top1: Images whose top-1 prediction is right.
        correct_top5: Images with a right class among the top 5.
        loss: Mean cross-entropy, nats; None if several classes may be right.
        calibration: Confidence and accuracy in bins.
    """

    name: str
    transform: str
    flip: bool
    num_images: int
    correct_top1: int
    correct_top5: int
    loss: float | None
    calibration: Calibration

    @property
    def top1(self) -> float:
        """Top-1 accuracy, in [0, 1]."""
        return self.correct_top1 / self.num_images

    @property
    def top5(self) -> float:
        """Top-5 accuracy, in [0, 1]."""
        return self.correct_top5 / self.num_images

    @property
    def top1_interval(self) -> Interval:
        """95% interval of `top1`."""
        return wilson(self.correct_top1, self.num_images)

    @property
    def top5_interval(self) -> Interval:
        """95% interval of `top5`."""
        return wilson(self.correct_top5, self.num_images)

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
    predictions: Predictions,
    targets: NDArray[np.int64] | Sequence[frozenset[int]],
) -> Result:
    """Count the correct predictions.

    Args:
        name: Name of images and labels.
        transform: Name of the transform.
        flip: Whether logits are averaged over the image and its mirror image.
        predictions: The predictions for each image.
        targets: The true class of each image, (n,) int64; or a set of true classes per image,
            where images with none are not counted.
    """
    top, confidence, loss = predictions.top, predictions.confidence, float(predictions.loss.mean())
    if isinstance(targets, np.ndarray):
        hits, mean_loss = top == targets[:, None], loss
    else:
        counted = np.array([bool(fitting) for fitting in targets])
        top, confidence, mean_loss = top[counted], confidence[counted], None
        fitting_classes = [fitting for fitting in targets if fitting]
        pairs = zip(top.tolist(), fitting_classes, strict=True)
        hits = np.array([[c in fitting for c in named] for named, fitting in pairs])
    correct_top1, correct_top5 = count_correct(hits)
    return Result(
        name=name,
        transform=transform,
        flip=flip,
        num_images=len(top),
        correct_top1=int(correct_top1),
        correct_top5=int(correct_top5),
        loss=mean_loss,
        calibration=calibration(confidence, hits[:, 0]),
    )
