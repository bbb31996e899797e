"""Initialise a run from pretrained weights (--init-from), and check that they fit the recipe."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import ResNetForImageClassification

from imagenet_rn50.evaluation.load_model import first_name
from imagenet_rn50.pretrained import Kind, Pretrained, load_weights, read_pretrained
from imagenet_rn50.pretrained_config import ASSUMED, VARIANT, normalization_of
from imagenet_rn50.recipe import DataRecipe, Recipe
from imagenet_rn50.utils.errors import InputError

_HEAD = ("classifier.1.weight", "classifier.1.bias")


def init_from_pretrained(
    model: nn.Module,
    init_from: str,
    recipe: Recipe,
    accelerator: Accelerator,
    kind: Kind | None = None,
) -> dict[str, Any]:
    """Initialise a model from pretrained weights; every rank calls it.

    Args:
        model: Freshly initialised, on the CPU.
        init_from: Weights, as `read_pretrained` takes them.
        recipe: Its normalisation must be that of the weights.
        accelerator: Prints what was done, once.
        kind: Averaged or raw weights, if the file holds both.

    Returns:
        The source of the weights, for the start line of metrics.jsonl.

    Raises:
        InputError: If they cannot be read, have another architecture, or were trained with another
            normalisation than the recipe's.
    """
    assert isinstance(model, ResNetForImageClassification)
    pretrained = read_pretrained(init_from, kind, option="--init-weights")
    _require_same_architecture(pretrained, model)
    prepared = _require_same_normalisation(pretrained, recipe.data)
    fresh = {name: model.get_parameter(name).detach().clone() for name in _HEAD}
    took_head = load_weights(model, pretrained, new_head=True)
    text = f"starting from the weights of {pretrained}"
    accelerator.print(f"{text}, {_classifier(pretrained, model, fresh, took_head)}")
    if pretrained.declared is None:
        accelerator.print(f"they do not state their architecture: assuming {ASSUMED}")
    accelerator.print(prepared)
    return {
        "init_from": {
            "name": pretrained.name,
            "sha256": pretrained.sha256,
            "weights": pretrained.kind,
            "classifier": "kept" if took_head else "new",
        }
    }


def _require_same_architecture(pretrained: Pretrained, model: ResNetForImageClassification) -> None:
    """Refuse weights of an architecture other than the recipe's, naming the field that differs."""
    variant = pretrained.declared.variant if pretrained.declared else {}
    for name in VARIANT:
        ours, theirs = getattr(model.config, name), variant.get(name, getattr(model.config, name))
        if theirs != ours:
            raise InputError(
                f"{pretrained.declared} has another architecture than the recipe",
                expected=f"{name} {ours!r}, the only one that a recipe can train",
                found=f"{name} {theirs!r}",
                fix="choose other weights",
            )
    pretrained.rebuild()


def _require_same_normalisation(pretrained: Pretrained, data: DataRecipe) -> str:
    """Refuse weights that were trained with another normalisation, naming both values.

    Returns:
        The preprocessing that the weights were trained with, as a sentence.
    """
    processor = pretrained.processor()
    if processor is None:
        return (
            "they do not state their preprocessing: assuming the recipe's "
            f"--data.mean {_numbers(data.mean)} --data.std {_numbers(data.std)}"
        )
    mean, std = normalization_of(processor)
    for name, theirs, ours in (("mean", mean, data.mean), ("std", std, data.std)):
        if not all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(theirs, ours, strict=True)):
            raise InputError(
                f"{pretrained.name} was trained with another normalisation",
                expected=f"{name} {_numbers(ours)}, the recipe's",
                found=f"{name} {_numbers(theirs)}",
                fix=f"--data.mean {_numbers(mean)} --data.std {_numbers(std)}",
            )
    settings = processor.to_dict()
    sizes = {name: settings.get(name) for name in ("size", "crop_size", "resample")}
    return f"they were trained with {sizes}; the recipe resizes to {data.eval_resize} px" + (
        f", crops {data.eval_size} px and interpolates bilinearly"
    )


def _numbers(values: Any) -> str:
    """Return numbers as a command line takes them."""
    return " ".join(f"{value:g}" for value in values)


def _classifier(
    pretrained: Pretrained,
    model: ResNetForImageClassification,
    fresh: dict[str, torch.Tensor],
    took_head: bool,
) -> str:
    """Reorder the classifier's rows to the run's classes; return what was done, for the log.

    If names have other indices in the weights, rows are matched by name, and a class that the
    weights do not name keeps its fresh row.
    """
    num_classes = model.config.num_labels
    if not took_head:
        return (
            f"with a new classifier: theirs has {pretrained.num_classes} classes, this run has "
            f"{num_classes}"
        )
    theirs, ours = pretrained.labels(), list((model.config.id2label or {}).values())
    if theirs is None or theirs == ours:
        return "including the classifier"
    row_of = {first_name(name): row for row, name in enumerate(theirs)}
    rows = [row_of.get(first_name(name)) for name in ours]
    is_distinct = len(row_of) == len(theirs) == len({first_name(name) for name in ours})
    if is_distinct and any(row not in {None, index} for index, row in enumerate(rows)):
        with torch.no_grad():
            for name in _HEAD:
                parameter = model.get_parameter(name)
                taken = parameter.detach().clone()
                for index, row in enumerate(rows):
                    parameter[index] = fresh[name][index] if row is None else taken[row]
        named = sum(row is not None for row in rows)
        return (
            f"including the classifier, its rows reordered by class name: {named} of {num_classes} "
            "matched" + ("" if named == num_classes else ", the others new")
        )
    differing = [pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1]]
    return (
        f"including the classifier, although {len(differing)} of {num_classes} classes "
        f"have another name there ({differing[0][0]!r} for {differing[0][1]!r})"
    )
