"""Top-1 and top-5 accuracy as a Hugging Face `evaluate` metric that needs no network.

import evaluate
metric = evaluate.load("imagenet_rn50/evaluation/topk_accuracy.py")
metric.compute(predictions=[[3, 1, 0, 2, 4]], references=[1])

`evaluate.evaluator("image-classification")` accepts it, too, but passes one class per image, so it
computes top-1 only.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

_DESCRIPTION = "Fraction of images whose true class is predicted first, or among the first five."
_INPUTS = """
Args:
    predictions: the most likely classes of each image, best first, (n, k) int; or one, (n,) int.
    references: the true class of each image, (n,) int; or a list of true classes per image.
Returns:
    top1 and, for more than one class per image, top5, in [0, 1]; num_images.
"""

_ONE = datasets.Value("int64")
_SEVERAL = datasets.Sequence(datasets.Value("int64"))


class TopKAccuracy(evaluate.Metric):  # type: ignore[misc]
    """Top-1, top-5 and the number of images."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": predictions, "references": references})
                for predictions in (_SEVERAL, _ONE)
                for references in (_ONE, _SEVERAL)
            ],
        )

    def _compute(
        self, predictions: list[list[int]] | list[int], references: list[int] | list[list[int]]
    ) -> dict[str, Any]:
        num_images = len(references)
        named = [p if isinstance(p, list) else [p] for p in predictions]
        targets = [{*r} if isinstance(r, list) else {r} for r in references]
        pairs = list(zip(named, targets, strict=True))
        top1 = sum(classes[0] in truth for classes, truth in pairs) / num_images
        if not isinstance(predictions[0], list):
            return {"top1": top1, "num_images": num_images}
        top5 = sum(not truth.isdisjoint(classes[:5]) for classes, truth in pairs) / num_images
        return {"top1": top1, "top5": top5, "num_images": num_images}
