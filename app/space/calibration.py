"""Tell images unlike those that a model saw, by a threshold stored when it was exported."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

FILE = "calibration.json"
"""In the model's folder; `python -m imagenet_rn50 export --shards` writes it."""
_SCORE = "log-odds of the maximum softmax"


@dataclass(frozen=True)
class Calibration:
    """A threshold of the highest class probability (Hendrycks and Gimpel 2017, arXiv 1610.02136).

    Attributes:
        temperature: What the logits are divided by before.
        threshold: An image is unfamiliar if the log-odds of the probability are at most this.
        false_alarm_rate: Fraction of the validation images that it calls unfamiliar.
        num_images: Number of validation images that it was chosen on.
    """

    temperature: float
    threshold: float
    false_alarm_rate: float
    num_images: int

    @classmethod
    def read(cls, folder: Path) -> Calibration | None:
        """Return the calibration of a model; None if it has none that can be used."""
        try:
            content = json.loads((folder / FILE).read_text(encoding="utf-8"))
            if content["score"] != _SCORE:
                raise ValueError(f"unknown score {content['score']!r}")
            return cls(
                float(content["temperature"]),
                float(content["threshold"]),
                float(content["false_alarm_rate"]),
                int(content["num_images"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logging.getLogger("space").warning("%s is ignored: %s", FILE, error)
            return None

    def is_unfamiliar(self, logits: torch.Tensor) -> bool:
        """Return whether an image is unlike those that the model saw.

        Args:
            logits: (C,) float.
        """
        scaled = (logits / self.temperature).sort(descending=True).values
        return bool(scaled[0] - scaled[1:].logsumexp(0) <= self.threshold)
