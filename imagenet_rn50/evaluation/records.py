"""What is kept of each image: enough for every figure of a report, and never all logits.

A table has one row an image, whose first column counts how often the image was seen. Ranks fill in
the rows of the images that they saw and leave zeros elsewhere; the tables of all ranks add up to
the whole, in which every image must have been seen once (contract 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagenet_rn50.errors import InputError
from imagenet_rn50.evaluation.metrics import top_classes

_SEEN, _LOSS, _CONFIDENCE, _TOP = 0, 1, 2, 3


def rows_of(logits: Tensor, labels: Tensor, subset: Tensor | None = None) -> Tensor:
    """Makes the rows of one batch, on the device where it is.

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
        """Reads the table that all ranks filled in together.

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
