"""What a run begins with, where it does not begin from scratch."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import ResNetForImageClassification

from imagenet_rn50.pretrained import Pretrained, read_pretrained, take_weights


def init_from_pretrained(
    model: nn.Module, init_from: str, accelerator: Accelerator
) -> dict[str, Any]:
    """Initialise a model from pretrained weights; every rank calls it.

    Args:
        model: Freshly initialised, on the CPU.
        init_from: Weights, as `read_pretrained` takes them.
        accelerator: Prints what was done, once.

    Returns:
        The source of the weights, for the log line of this start.

    Raises:
        InputError: If they cannot be read, or belong to another architecture.
    """
    assert isinstance(model, ResNetForImageClassification)
    pretrained = read_pretrained(init_from)
    took_head = take_weights(model, pretrained, new_head=True)
    accelerator.print(_told(pretrained, model, took_head))
    return {
        "init_from": {
            "name": pretrained.name,
            "sha256": pretrained.sha256,
            "classifier": "kept" if took_head else "new",
        }
    }


def _told(pretrained: Pretrained, model: ResNetForImageClassification, took_head: bool) -> str:
    """Says what became of the classifier."""
    text = f"beginning with the weights of {pretrained.name}"
    num_classes = model.config.num_labels
    if not took_head:
        return (
            f"{text}, but its classifier is new: it told {pretrained.num_classes} classes apart, "
            f"here there are {num_classes}"
        )
    theirs, ours = pretrained.labels(), list((model.config.id2label or {}).values())
    if theirs is not None and theirs != ours:
        differing = [pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1]]
        return (
            f"{text}, its classifier included, though {len(differing)} of {num_classes} classes "
            f"are named otherwise there ({differing[0][0]!r} for {differing[0][1]!r})"
        )
    return f"{text}, its classifier included"
