"""Top-1 and top-5 accuracy as a Hugging Face `evaluate` metric that needs no network.

import evaluate
metric = evaluate.load("imagenet_rn50/evaluation/topk_accuracy.py")
metric.compute(predictions=[[3, 1, 0, 2, 4]], references=[1])
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

_DESCRIPTION = "Part of the images whose true class is the first, or among the first five, named."
_INPUTS = """
Args:
    predictions: for each image its most likely classes, best first, at most five: (n, k) int.
    references: true classes: (n,) int.
Returns:
    top1, top5: in [0, 1]; num_images.
"""


class TopKAccuracy(evaluate.Metric):  # type: ignore[misc]
    """Top-1, top-5 and the number of images."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: list[list[int]], references: list[int]) -> dict[str, Any]:
        num_images = len(references)
        pairs = list(zip(predictions, references, strict=True))
        return {
            "top1": sum(classes[0] == truth for classes, truth in pairs) / num_images,
            "top5": sum(truth in classes[:5] for classes, truth in pairs) / num_images,
            "num_images": num_images,
        }
