"""A card's metadata: what the Hub reads of it, each result with its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from imagenet_rn50.errors import InputError
from imagenet_rn50.evaluation.metrics import TOP_K
from imagenet_rn50.publishing.evidence import (
    EVALUATED_ON,
    REAL,
    REAL_SUFFIX,
    TRAINED_ON,
    UNVERIFIED_PREFIX,
    Evidence,
    Place,
)
from imagenet_rn50.publishing.layout import CONFIG, EVALUATION, METRICS
from imagenet_rn50.publishing.trace import place_arguments
from imagenet_rn50.publishing.wording import Format
from imagenet_rn50.runs.choice import Choice
from imagenet_rn50.shards.imagenet1k import HUB_NAME, is_name

_LICENSE = "apache-2.0"
_METRICS = (("top-1", "top1"), ("top-5", "top5"))
_EVALUATED_SPLIT = Place(EVALUATION, "dataset.split")
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


def metadata(evidence: Evidence, facts: Facts) -> ModelCardData:
    """Returns what the Hub reads.

    Args:
        evidence: Where the results stand.
        facts: What else is known.
    """
    is_own = facts.choice is not None and evidence.init_from() is None
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=data if hub_name is None else hub_name,
            dataset_name=data,
            dataset_split=split,
            metric_type="accuracy",
            metric_name=name,
            metric_value=evidence.value(place),
            metric_args=place_arguments(place),
        )
        for data, hub_name, split, name, place in _scores(evidence, facts)
    ]
    is_imagenet1k = facts.choice is not None and evidence.trained_on_imagenet1k()
    return ModelCardData(
        license=_LICENSE if is_own else None,  # what comes of others' weights has theirs
        library_name=_LIBRARIES[facts.form],
        pipeline_tag="image-classification",
        tags=["image-classification", "resnet", "vision"],
        datasets=[HUB_NAME] if is_imagenet1k else None,
        metrics=["accuracy"],
        model_name=facts.name,
        eval_results=results or None,
    )


def has_top5(evidence: Evidence, file: str) -> bool:
    """Says whether the top-5 in a file says anything: naming five classes may name them all."""
    num_classes = len(evidence.value(Place(CONFIG, "id2label")))
    if file == EVALUATION:  # a test set may have only some of the classes
        with suppress(InputError):
            num_classes = evidence.value(Place(EVALUATION, "num_classes_counted"))
    return num_classes > TOP_K


def _metrics(evidence: Evidence, file: str) -> tuple[tuple[str, str], ...]:
    """Returns names and keys of the figures in a file that say something."""
    return _METRICS if has_top5(evidence, file) else _METRICS[:1]


def _scores(evidence: Evidence, facts: Facts) -> Iterator[tuple[str, str | None, str, str, Place]]:
    """Yields data, its name on the Hub if any, split, metric and place of each result.

    Of every set of pictures the Hub takes one figure, so it is the one that people will get:
    through the published processor, not averaged with mirror images. Where nothing was evaluated,
    what was validated while training stands for it.
    """
    best: dict[str, tuple[tuple[bool, bool], int]] = {}
    for number, result in enumerate(evaluations(evidence)):
        rank = (not result["flip"], result["transform"] == "processor")
        if result["name"] not in best or rank > best[result["name"]][0]:
            best[result["name"]] = (rank, number)
    choice = facts.choice
    for name, (_, number) in best.items():
        data, split = str(evidence.value(EVALUATED_ON)), evidence.value(_EVALUATED_SPLIT)
        is_imagenet1k = evidence.evaluated_on_imagenet1k()
        data = _without_claim(data, is_imagenet1k) + (REAL_SUFFIX if name == REAL else "")
        hub_name = HUB_NAME if is_imagenet1k and name != REAL else None
        for metric, key in _metrics(evidence, EVALUATION):
            yield data, hub_name, split, metric, Place(EVALUATION, f"results.{number}.{key}")
    if not best and choice and choice.line is not None:
        is_imagenet1k = evidence.trained_on_imagenet1k("validation")
        data = _without_claim(str(evidence.value(TRAINED_ON)), is_imagenet1k)
        for metric, key in _metrics(evidence, METRICS):
            place = Place(METRICS, choice.prefix + key, choice.line)
            yield data, HUB_NAME if is_imagenet1k else None, "validation", metric, place


def _without_claim(data: str, is_imagenet1k: bool) -> str:
    """Returns the name of a data set that was not shown to be what it is called."""
    return f"{UNVERIFIED_PREFIX}{data}" if is_name(data) and not is_imagenet1k else data


def evaluations(evidence: Evidence) -> list[dict[str, Any]]:
    """Returns the results of metrics.json, where there is one."""
    if not evidence.has(EVALUATION):
        return []
    results: list[dict[str, Any]] = evidence.value(Place(EVALUATION, "results"))
    return results
