"""Size and cost of a model: parameters, multiply-adds and activations, for the card."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

from imagenet_rn50.utilisation import network_flops


def model_stats(config: ResNetConfig, size: int) -> dict[str, Any]:
    """Count a model's parameters, and what one image costs, as timm's cards do.

    Args:
        config: Configuration of the model.
        size: Side of the image, px.

    Returns:
        `parameters`, a number; `gmacs`, billions of multiply-adds in convolutions and the
        classifier; `activations`, millions of elements in the outputs of the convolutions
        (Radosavovic et al. 2020, "Designing network design spaces"); `image_size`, px.
    """
    outputs: list[int] = []

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        outputs.append(output.numel())

    with torch.device("meta"):  # computes shapes only
        model = ResNetForImageClassification(config).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    flops = network_flops(model, size)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gmacs": flops / 2 / 1e9,
        "activations": sum(outputs) / 1e6,
        "image_size": size,
    }
