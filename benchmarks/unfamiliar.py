"""Scores by which a model's logits tell images that are unlike those that it saw.

    python -m benchmarks.unfamiliar --model exports/digits --shards data/digits/shards

Familiar images are those of the validation split. Unfamiliar ones are random crops of photos, noise
of several kinds and plain colours, all prepared by the model's own processor. The threshold of each
score is chosen as `export` does it, so 5% of the familiar images are called unfamiliar.

Printed are the area under the ROC curve and the fraction of unfamiliar images that are found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score
from torch import Tensor

from imagenet_rn50.data.image_folder import ProcessorTransform
from imagenet_rn50.model import load_exported, logits_of
from imagenet_rn50.publishing.calibration import (
    fit_temperature,
    maximum_softmax,
    threshold_of,
    validation_logits,
)
from imagenet_rn50.publishing.validation_images import ValidationImages
from imagenet_rn50.shards.store import open_shards

_EXAMPLES = Path(__file__).parents[1] / "app" / "examples"
_CROPS = 50  # of each photo
_NOISES = 100  # of each kind


@dataclass(frozen=True)
class Arguments:
    """Compare scores of unfamiliar images."""

    model: Path
    """Exported folder."""
    shards: str
    """Shards whose validation images are familiar."""


def main() -> None:
    """Print a line per score and kind of unfamiliar images."""
    from transformers import AutoImageProcessor

    arguments = tyro.cli(Arguments)
    model = load_exported(arguments.model)
    processor = AutoImageProcessor.from_pretrained(arguments.model)
    transform = ProcessorTransform.of(processor)
    images = ValidationImages.of(open_shards(arguments.shards), None)

    @torch.inference_mode()
    def logits(pixels: Tensor) -> Tensor:
        return logits_of(model, pixels)

    number = images.split.num_samples
    familiar, labels = validation_logits(images, logits, processor, number)
    temperature = fit_temperature(familiar, labels)
    print(f"{number} validation images; temperature {temperature:.2f}")
    scores = _scores(temperature)
    kinds = {"photos": _photos, "noise": _noise, "plain colours": _plain}
    print(f"{'score':<28}" + "".join(f"{kind:>26}" for kind in kinds))
    found = {
        kind: torch.cat([logits(transform.prepare(image)[None]) for image in make()])
        for kind, make in kinds.items()
    }
    for name, score in scores.items():
        known = score(familiar)
        threshold = threshold_of(known)
        cells = []
        for unfamiliar in found.values():
            values = score(unfamiliar)
            truth = [1] * len(known) + [0] * len(values)
            area = roc_auc_score(truth, torch.cat([known, values]).numpy())
            detected = (values <= threshold).float().mean().item()
            cells.append(f"AUROC {area:.3f}, found {detected:4.0%}")
        print(f"{name:<28}" + "".join(f"{cell:>26}" for cell in cells))


def _scores(temperature: float) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return functions from logits, (B, C), to scores, (B,), high for familiar images."""
    return {
        "maximum softmax": lambda logits: maximum_softmax(logits, 1),
        "maximum softmax, calibrated": lambda logits: maximum_softmax(logits, temperature),
        "maximum logit": lambda logits: logits.amax(1),
        "energy": lambda logits: logits.logsumexp(1),
        "energy, calibrated": lambda logits: (logits / temperature).logsumexp(1),
    }


def _photos() -> Iterator[NDArray[np.uint8]]:
    """Yield random crops of the Space's photos and of scikit-learn's."""
    rng = np.random.default_rng(0)
    photos = [np.asarray(Image.open(path).convert("RGB")) for path in _EXAMPLES.glob("*.jpg")]
    for photo in sorted(photos, key=lambda photo: photo.shape) + load_sample_images().images:
        yield photo
        for _ in range(_CROPS):
            side = int(rng.integers(64, min(photo.shape[:2])))
            top, left = (int(rng.integers(0, length - side)) for length in photo.shape[:2])
            yield photo[top : top + side, left : left + side]


def _noise() -> Iterator[NDArray[np.uint8]]:
    """Yield noise: of pixels, of blocks, smooth, and black with some white pixels."""
    rng = np.random.default_rng(1)
    for _ in range(_NOISES):
        yield rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
        rough = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        yield rough.repeat(16, 0).repeat(16, 1)
        yield np.asarray(Image.fromarray(rough).resize((128, 128), Image.Resampling.BICUBIC))
        yield np.uint8(255 * (rng.random((128, 128, 1)) < 0.05)).repeat(3, 2)


def _plain() -> Iterator[NDArray[np.uint8]]:
    """Yield images of one colour."""
    for colour in np.random.default_rng(2).integers(0, 256, (_NOISES, 3), dtype=np.uint8):
        yield np.full((128, 128, 3), colour, dtype=np.uint8)


if __name__ == "__main__":
    main()
