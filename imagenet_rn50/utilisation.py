"""FLOPs of a model, counted by torch; with images/s and a device's peak (peaks.py) they give MFU.

A multiply-add counts as two. Matrix products and convolutions count, as is usual; BatchNorm,
activations and pooling have few FLOPs, though they take much of the time.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from imagenet_rn50.model import build_labelled, logits_of
from imagenet_rn50.recipe import ModelRecipe


@cache
def training_flops(model: ModelRecipe, size: int, num_classes: int) -> int:
    """Return the FLOPs of one image's forward and backward pass.

    Args:
        model: The model's settings.
        size: Side of the image, px.
        num_classes: Number of classes.
    """
    return _flops(model, size, num_classes, is_training=True)


@cache
def forward_flops(model: ModelRecipe, size: int, num_classes: int) -> int:
    """Return the FLOPs of one image's forward pass; see `training_flops`."""
    return _flops(model, size, num_classes, is_training=False)


def _flops(model: ModelRecipe, size: int, num_classes: int, *, is_training: bool) -> int:
    with torch.device("meta"):  # computes shapes only
        network = build_labelled(model, [str(number) for number in range(num_classes)])
    return network_flops(network, size, is_training=is_training)


def network_flops(network: nn.Module, size: int, *, is_training: bool = False) -> int:
    """Return the FLOPs of one image in a network; see `training_flops`.

    Args:
        network: A classifier on the device `meta`; its BatchNorm and ReLU are disabled.
        size: Side of the image, px.
        is_training: Whether to add the backward pass.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.ReLU):  # count as none, but cost torch a second
            module.forward = nn.Identity().forward  # type: ignore[method-assign]
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        logits = logits_of(network, torch.empty(1, 3, size, size))
        if is_training:
            logits.sum().backward()
    return int(counter.get_total_flops())
