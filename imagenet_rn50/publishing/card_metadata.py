"""The metadata of a card, which the Hub reads, and the results that stand for the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from imagenet_rn50.publishing.layout import EVALUATION, METRICS
from imagenet_rn50.publishing.snippets import Format
from imagenet_rn50.publishing.source_files import (
    EVALUATED_ON,
    REAL,
    REAL_SUFFIX,
    TRAINED_ON,
    UNVERIFIED_PREFIX,
    CardInfo,
    FieldRef,
    SourceFiles,
)
from imagenet_rn50.shards.imagenet1k import HUB_NAME, is_name
from imagenet_rn50.shards.manifest import VALIDATION

_LICENSE = "apache-2.0"
_TOP1, _TOP5 = ("top-1", "top1"), ("top-5", "top5")
_EVALUATED_SPLIT = FieldRef(EVALUATION, "dataset.split")
_LIBRARIES: dict[Format, str] = {
    "transformers": "transformers",
    "torchvision": "torchvision",
    "onnx": "onnx",
}


class Score(NamedTuple):
    """An accuracy of the model.

    Attributes:
        data: Name of the data set.
        hub_name: Its name on the Hub, if it has one.
        split: The split.
        metric: top-1 or top-5.
        ref: The field that has the accuracy.
    """

    data: str
    hub_name: str | None
    split: str
    metric: str
    ref: FieldRef


def license_of(files: SourceFiles, info: CardInfo) -> str | None:
    """Return the license of the weights; None if they come from others, whose license applies."""
    is_own = info.choice is not None and files.init_from() is None
    return _LICENSE if is_own else None


def metadata(files: SourceFiles, info: CardInfo) -> ModelCardData:
    """Return the metadata of the card, which the Hub reads.

    Args:
        files: The source files.
        info: Other facts of the export.
    """
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=score.data if score.hub_name is None else score.hub_name,
            dataset_name=score.data,
            dataset_split=score.split,
            metric_type="accuracy",
            metric_name=score.metric,
            metric_value=files.value(score.ref),
            metric_args=score.ref.as_arguments(),
        )
        for score in scores(files, info)
    ]
    is_imagenet1k = info.choice is not None and files.trained_on_imagenet1k()
    return ModelCardData(
        base_model=files.base_model(),
        license=license_of(files, info),
        library_name=_LIBRARIES[info.form],
        pipeline_tag="image-classification",
        tags=["image-classification", "resnet", "vision"],
        datasets=[HUB_NAME] if is_imagenet1k else None,
        metrics=["accuracy"],
        model_name=info.name,
        eval_results=results or None,
    )


def scores(files: SourceFiles, info: CardInfo) -> Iterator[Score]:
    """Yield the accuracies that stand for the model, at most one result per data set.

    It is the one that users get, with the published processor and without flip averaging. Without
    an evaluation, the validation during training is used.
    """
    best: dict[str, tuple[tuple[bool, bool], int]] = {}
    for number, result in enumerate(files.evaluations()):
        rank = (not result["flip"], result["transform"] == "processor")
        if result["name"] not in best or rank > best[result["name"]][0]:
            best[result["name"]] = (rank, number)
    choice = info.choice
    for name, (_, number) in best.items():
        data, split = str(files.value(EVALUATED_ON)), files.value(_EVALUATED_SPLIT)
        is_imagenet1k = files.evaluated_on_imagenet1k()
        data = _without_claim(data, is_imagenet1k) + (REAL_SUFFIX if name == REAL else "")
        hub_name = HUB_NAME if is_imagenet1k and name != REAL else None
        for metric, key in _metrics(files, EVALUATION):
            ref = FieldRef(EVALUATION, f"results.{number}.{key}")
            yield Score(data, hub_name, split, metric, ref)
    if not best and choice and choice.line is not None:
        is_imagenet1k = files.trained_on_imagenet1k(VALIDATION)
        data = _without_claim(str(files.value(TRAINED_ON)), is_imagenet1k)
        for metric, key in _metrics(files, METRICS):
            ref = FieldRef(METRICS, choice.prefix + key, choice.line)
            yield Score(data, HUB_NAME if is_imagenet1k else None, VALIDATION, metric, ref)


def leaderboard_refs(files: SourceFiles, info: CardInfo) -> list[FieldRef]:
    """Return the fields with top-1 on ImageNet-1k's validation split, for `.eval_results/`."""
    return [
        score.ref
        for score in scores(files, info)
        if (score.hub_name, score.split, score.metric) == (HUB_NAME, VALIDATION, _TOP1[0])
    ]


def _metrics(files: SourceFiles, file: str) -> tuple[tuple[str, str], ...]:
    """Return names and keys of the meaningful accuracies in a file."""
    return (_TOP1, _TOP5) if files.has_top5(file) else (_TOP1,)


def _without_claim(data: str, is_imagenet1k: bool) -> str:
    """Return a data set's name, prefixed if it is an unverified claim to be ImageNet-1k."""
    return f"{UNVERIFIED_PREFIX}{data}" if is_name(data) and not is_imagenet1k else data
