"""A card's metadata: what the Hub reads of it, each result with its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from imagenet_rn50.publishing.choice import Choice
from imagenet_rn50.publishing.evidence import Evidence, Place
from imagenet_rn50.publishing.layout import EVALUATION, METRICS
from imagenet_rn50.publishing.trace import place_arguments
from imagenet_rn50.publishing.wording import Format

_LICENSE = "apache-2.0"
HUB_DATASETS = {"imagenet1k": "ILSVRC/imagenet-1k"}
"""Where data sets stand on the Hub, by the names of their shards."""
_LIBRARIES: dict[Format, str] = {
    "transformers": "transformers",
    "torchvision": "torchvision",
    "onnx": "onnx",
}


@dataclass(frozen=True)
class Facts:
    """What a card is made of, besides its evidence.

    Attributes:
        name: The model's name.
        form: In which format the weights stand beside the card.
        dtype: Type of the weights.
        choice: Which weights of a run they are; None for weights of others, whose origin.json
            stands beside the card.
    """

    name: str
    form: Format
    dtype: str
    choice: Choice | None


def metadata(evidence: Evidence, facts: Facts, dataset: str | None) -> ModelCardData:
    """Returns what the Hub reads."""
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=HUB_DATASETS.get(dataset or "", dataset or "unknown"),
            dataset_name=dataset or "unknown",
            dataset_split="validation",
            dataset_args=arguments or None,
            metric_type="accuracy",
            metric_name=name,
            metric_value=evidence.value(place),
            metric_args=place_arguments(place),
        )
        for name, place, arguments in _scores(evidence, facts)
    ]
    hub_dataset = HUB_DATASETS.get(dataset or "")
    return ModelCardData(
        license=_LICENSE if facts.choice else None,  # weights of others keep their own
        library_name=_LIBRARIES[facts.form],
        pipeline_tag="image-classification",
        tags=["image-classification", "resnet", "vision"],
        datasets=[hub_dataset] if hub_dataset else None,
        metrics=["accuracy"],
        model_name=facts.name,
        eval_results=results or None,
    )


def _scores(evidence: Evidence, facts: Facts) -> Iterator[tuple[str, Place, dict[str, Any]]]:
    """Yields the metadata's results: name, place, and how the pictures were prepared."""
    for number, result in enumerate(evaluations(evidence)):
        prepared = {"transform": result["transform"], "flip": result["flip"]}
        for name, key in (("top-1", "top1"), ("top-5", "top5")):
            yield name, Place(EVALUATION, f"results.{number}.{key}"), prepared
    choice = facts.choice
    if choice and choice.line is not None:
        for name, key in (("top-1", "top1"), ("top-5", "top5")):
            yield name, Place(METRICS, choice.prefix + key, choice.line), {}


def evaluations(evidence: Evidence) -> list[dict[str, Any]]:
    """Returns the results of metrics.json, where there is one."""
    if not evidence.has(EVALUATION):
        return []
    results: list[dict[str, Any]] = evidence.value(Place(EVALUATION, "results"))
    return results
