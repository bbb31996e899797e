"""What a run begins with, where it does not begin from scratch."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import ResNetForImageClassification

from imagenet_rn50.pretrained import Pretrained, read_pretrained, take_weights
from imagenet_rn50.training.session import Session


def begin_with(model: nn.Module, session: Session) -> dict[str, Any]:
    """Puts the weights that a session names into a fresh model; every rank calls it.

    What takes up a checkpoint has its weights, and keeps them. The learning rate finder takes up
    none: it tries the weights that are named, whatever stands in the run folder.

    Args:
        model: Freshly initialised, on the CPU.
        session: Says whose weights, if any.

    Returns:
        Where they came from, for the journal's line of this start; empty where the weights are
        fresh, or the run's own.

    Raises:
        InputError: When they cannot be read, or belong to another network.
    """
    if session.init_from is None:
        return {}
    if session.start.checkpoint is not None:
        place = session.start.checkpoint.folder
        session.accelerator.print(f"the weights are those of {place}: --init-from is left aside")
        return {}
    assert isinstance(model, ResNetForImageClassification)
    pretrained = read_pretrained(session.init_from)
    took_head = take_weights(model, pretrained, new_head=True)
    session.accelerator.print(_told(pretrained, model, took_head))
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
