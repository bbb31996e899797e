"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): what in the picture speaks for a class."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

SIDE = 448  # px at which heat maps are shown

# Anchors of matplotlib's "inferno": dark to bright in gray too, so that it needs no colour vision.
_COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])


def grad_cam(model: PreTrainedModel, pixels: torch.Tensor, index: int) -> torch.Tensor | None:
    """Weighs the channels of the last stage by how much they raise the logit of one class.

    Args:
        model: In eval mode.
        pixels: (1, 3, H, W), as the processor made them.
        index: The class.

    Returns:
        (h, w) float in [0, 1], h and w those of the last stage's feature map; None when the model
        has no such map (a transformer, say).
    """
    with torch.enable_grad():
        outputs = model(pixel_values=pixels, output_hidden_states=True)
        features = outputs.hidden_states[-1]  # (1, C, h, w)
        if features.ndim != 4:
            return None
        (gradient,) = torch.autograd.grad(outputs.logits[0, index], features)
    weights = gradient.mean((2, 3), keepdim=True)  # (1, C, 1, 1)
    heat: torch.Tensor = (weights * features.detach()).sum(1)[0].relu().float()
    return heat / heat.max().clamp_min(1e-12)


def paint(heat: torch.Tensor, size: tuple[int, int]) -> Image.Image:
    """Paints a heat map that is laid over a picture: clear where it is cold.

    Args:
        heat: (h, w) float in [0, 1].
        size: Width and height of the picture.

    Returns:
        RGBA.
    """
    smooth = np.asarray(Image.fromarray(heat.numpy()).resize(size, Image.Resampling.BICUBIC))
    smooth = smooth.clip(0, 1)
    stops = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(smooth, stops, channel) for channel in _COLOURS.T]
    alpha = 255 * smooth
    return Image.fromarray(np.stack([*channels, alpha], axis=-1).round().astype(np.uint8))
