"""A threshold by which the Space recognises images that are unlike those that the model saw.

The score of an image is its highest class probability (Hendrycks and Gimpel 2017, arXiv
1610.02136), as log-odds, which do not saturate. The logits are divided by the temperature that fits
the validation images best (Guo et al. 2017, arXiv 1706.04599). `benchmarks/unfamiliar.py` compares
it with other scores. The threshold is a low quantile of the score on validation images: of n
exchangeable scores and a new one, the new one is among the k lowest with probability k / (n + 1),
which is at most `FALSE_ALARM_RATE`.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BaseImageProcessor

from imagenet_rn50.data.image_folder import ProcessorTransform
from imagenet_rn50.publishing.layout import CALIBRATION
from imagenet_rn50.publishing.onnx_models import Logits
from imagenet_rn50.publishing.validation_images import ValidationImages
from imagenet_rn50.utils.files import write_json
from imagenet_rn50.utils.logging import logger

SCHEMA = 1  # of calibration.json
SCORE = "log-odds of the maximum softmax"
FALSE_ALARM_RATE = 0.05
_MAX_IMAGES = 512  # half a minute of ResNet-50 on two cores
_MIN_IMAGES = math.ceil(1 / FALSE_ALARM_RATE) - 1
_BATCH = 32


def maximum_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Return the log-odds of the highest class probability of each image.

    Args:
        logits: (B, C) float.
        temperature: What to divide them by.

    Returns:
        (B,) float.
    """
    scaled = (logits / temperature).sort(1, descending=True).values
    return scaled[:, 0] - scaled[:, 1:].logsumexp(1)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature from 0.1 to 10 with the lowest cross entropy.

    Args:
        logits: (B, C) float.
        labels: Class indices; (B,) int64.
    """
    candidates: list[float] = torch.logspace(-1, 1, 201).tolist()
    losses = [cross_entropy(logits / temperature, labels).item() for temperature in candidates]
    return round(candidates[losses.index(min(losses))], 4)


def write_calibration(
    images: ValidationImages, logits_of: Logits, processor: BaseImageProcessor, folder: Path
) -> None:
    """Write calibration.json, unless there are too few images for a threshold.

    Args:
        images: The validation images; at most 512 are used, spread evenly over the classes.
        logits_of: The exported model.
        processor: Its processor.
        folder: The export.
    """
    num_images = min(_MAX_IMAGES, images.split.num_samples)
    if num_images < _MIN_IMAGES:
        logger.info(
            f"no {CALIBRATION}: it needs {_MIN_IMAGES} validation images, found {num_images}"
        )
        return
    logits, labels = validation_logits(images, logits_of, processor, num_images)
    temperature = fit_temperature(logits, labels)
    scores = maximum_softmax(logits, temperature)
    threshold = threshold_of(scores)
    false_alarm_rate = (scores <= threshold).double().mean().item()
    if not false_alarm_rate <= 2 * FALSE_ALARM_RATE:
        logger.info(f"no {CALIBRATION}: the model is equally certain of most validation images")
        return
    content = {
        "schema": SCHEMA,
        "score": SCORE,
        "temperature": temperature,
        "threshold": threshold,
        "false_alarm_rate": false_alarm_rate,
        "num_images": num_images,
    }
    write_json(folder / CALIBRATION, content | images.source)


def threshold_of(scores: Tensor) -> float:
    """Return the largest score of images that are called unfamiliar.

    Args:
        scores: Scores of validation images; (n,) float, n at least 19.
    """
    rank = math.floor(FALSE_ALARM_RATE * (len(scores) + 1))
    return float(scores.sort().values[rank - 1])


@torch.inference_mode()
def validation_logits(
    images: ValidationImages, logits_of: Logits, processor: BaseImageProcessor, number: int
) -> tuple[Tensor, Tensor]:
    """Return the logits of validation images, prepared as users do, and their classes.

    Args:
        images: The validation images.
        logits_of: The model.
        processor: Its processor.
        number: How many to use, spread evenly over the classes.

    Returns:
        Logits, (number, C) float, and class indices, (number,) int64.

    Raises:
        InputError: If an image cannot be read, or the processor's results are not square.
    """
    transform = ProcessorTransform.of(processor)
    indices = images.choose(number, "calibration")
    results = []
    for start in range(0, len(indices), _BATCH):
        jpegs = images.read(indices[start : start + _BATCH])
        batch = torch.stack([transform(jpeg, 0, 0) for jpeg in jpegs])
        results.append(logits_of(batch).float())
    return torch.cat(results), torch.from_numpy(images.split.labels[indices]).long()
