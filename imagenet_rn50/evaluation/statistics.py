"""Confidence intervals, calibration, accuracy per class and confusions, from `Predictions`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagenet_rn50.evaluation.metrics import count_correct

NUM_BINS = 15
"""Bins of confidence, as in Guo et al. 2017."""

_Z = 1.959963984540054  # of a two-sided 95% interval: the normal quantile of 0.975


class Interval(NamedTuple):
    """Bounds of a 95% confidence interval, in [0, 1]."""

    low: float
    high: float


def wilson(hits: int, num_images: int) -> Interval:
    """Return the 95% score interval of a proportion (Wilson 1927).

    With p = hits / n and z = 1.96:  (p + z^2/2n  -+  z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    Unlike p -+ z sqrt(p(1-p)/n) it stays in [0, 1], and has a width if p is 0 or 1.

    Args:
        hits: Number of correct images.
        num_images: Number of images, at least 1.
    """
    p, n = hits / num_images, num_images
    middle = p + _Z**2 / (2 * n)
    spread = _Z * np.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    low, high = ((middle + sign * spread) / (1 + _Z**2 / n) for sign in (-1, 1))
    # At the ends the formula gives 0 and 1 except for rounding.
    return Interval(0.0 if hits == 0 else float(low), 1.0 if hits == n else float(high))


@dataclass(frozen=True)
class Calibration:
    """Confidence and accuracy in bins of equal width.

    Bin m of M holds the images with a confidence in ((m-1)/M, m/M].

    Args:
        num_images: Images in each bin; (M,) int64.
        confidence: Their mean confidence, in [0, 1]; (M,) float64, 0 for an empty bin.
        accuracy: Their top-1 accuracy, in [0, 1]; (M,) float64, 0 for an empty bin.
    """

    num_images: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1] (Naeini et al. 2015; Guo et al. 2017, eq. 3).

        The sum over bins of (images of the bin / all images) |accuracy - confidence|.
        """
        weights = self.num_images / self.num_images.sum()
        return float((weights * np.abs(self.accuracy - self.confidence)).sum())


def calibration(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], num_bins: int = NUM_BINS
) -> Calibration:
    """Sort images into bins by confidence.

    Args:
        confidence: Probability of the top-1 class, in [0, 1]; (n,) float64.
        right: Whether that is the true class; (n,) bool.
        num_bins: Number of bins.
    """
    edges = np.arange(1, num_bins) / num_bins
    bins = np.searchsorted(edges, confidence, side="left")
    count = np.bincount(bins, minlength=num_bins)
    divisor = np.maximum(count, 1)
    return Calibration(
        num_images=count,
        confidence=np.bincount(bins, weights=confidence, minlength=num_bins) / divisor,
        accuracy=np.bincount(bins, weights=right, minlength=num_bins) / divisor,
    )


@dataclass(frozen=True)
class ClassCount:
    """The predictions for the images of one class.

    Attributes:
        label: Class index.
        num_images: Images of the class.
        top1: How many of them the top-1 prediction got right.
        top5: How many of them the top-5 predictions contain.
        most_confused_with: The class most often predicted instead; None if all were right.
        count: How often it was.
    """

    label: int
    num_images: int
    top1: int
    top5: int
    most_confused_with: int | None
    count: int


@dataclass(frozen=True)
class Confusion:
    """How many images of class `target` were predicted as class `named`."""

    target: int
    named: int
    count: int


def class_counts(labels: NDArray[np.int64], top: NDArray[np.int64]) -> list[ClassCount]:
    """Count each class that has images, in the order of their indices.

    Args:
        labels: True classes; (n,) int64.
        top: Predicted classes, best first; (n, k) int64.
    """
    hits = top == labels[:, None]
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    counted = []
    for label, rows in zip(present.tolist(), np.split(order, starts[1:]), strict=True):
        wrong = top[rows, 0][~hits[rows, 0]]
        others, count = np.unique(wrong, return_counts=True)
        most = int(count.argmax()) if len(wrong) else None
        top1, top5 = count_correct(hits[rows])
        counted.append(
            ClassCount(
                label=label,
                num_images=len(rows),
                top1=int(top1),
                top5=int(top5),
                most_confused_with=None if most is None else int(others[most]),
                count=0 if most is None else int(count[most]),
            )
        )
    return counted


def confusions(labels: NDArray[np.int64], named: NDArray[np.int64], limit: int) -> list[Confusion]:
    """Return the most frequent confusions, most frequent first, then by class index.

    Args:
        labels: True classes; (n,) int64.
        named: Top-1 predictions; (n,) int64.
        limit: Maximum number to return.
    """
    wrong = named != labels
    pairs = np.stack([labels[wrong], named[wrong]], axis=1)
    distinct, count = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-count, kind="stable")[:limit]
    return [
        Confusion(int(distinct[row, 0]), int(distinct[row, 1]), int(count[row])) for row in order
    ]


def confusion_matrix(
    labels: NDArray[np.int64], named: NDArray[np.int64], classes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return how many images of each class were predicted as each class.

    Args:
        labels: True classes; (n,) int64.
        named: Top-1 predictions; (n,) int64.
        classes: The classes that `labels` and `named` consist of, sorted; (C,) int64.

    Returns:
        (C, C) int64: true class, predicted class.
    """
    rows, columns = np.searchsorted(classes, labels), np.searchsorted(classes, named)
    counts = np.bincount(rows * len(classes) + columns, minlength=len(classes) ** 2)
    return counts.reshape(len(classes), len(classes))
