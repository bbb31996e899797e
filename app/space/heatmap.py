"""Grad-CAM (Selvaraju et al. 2017): what raises the score of a class."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

METHOD, METHOD_URL = "Grad-CAM", "https://arxiv.org/abs/1610.02391"
_MIN_SIDE = 7  # positions, as in the last stage of ResNet-50 for 224 px
SIDE = 448  # px, width of the heat map on the page

# Anchors of matplotlib's "inferno": dark to bright in gray too, so it works without colour vision.
_COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])


def grad_cam(model: PreTrainedModel, pixels: torch.Tensor, index: int) -> torch.Tensor | None:
    """Weight the channels of a stage by the gradient of one class's logit.

    The stage is the last one, unless its map is too coarse to tell parts of the image apart: of a
    model of small images, whose last stage has four positions, an empty corner would glow.

    Args:
        model: A convolutional model in eval mode.
        pixels: (1, 3, H, W), normalized by the processor.
        index: Class index.

    Returns:
        (h, w) float from 0, where the image raises the logit least or not at all, to 1, where it
        raises it most; None if the model has no feature map (a transformer, for example).
    """
    with torch.enable_grad():
        outputs = model(pixel_values=pixels, output_hidden_states=True)
        maps = [features for features in outputs.hidden_states if features.ndim == 4]
        if not maps or outputs.hidden_states[-1].ndim != 4:
            return None
        # The last one of those that are fine enough, or else of the finest.
        features = max(reversed(maps), key=lambda features: min(*features.shape[2:], _MIN_SIDE))
        (gradient,) = torch.autograd.grad(outputs.logits[0, index], features)
    weights = gradient.mean((2, 3), keepdim=True)  # (1, C, 1, 1)
    heat: torch.Tensor = (weights * features.detach()).sum(1)[0].relu().float()
    heat -= heat.min()
    return heat / heat.max().clamp_min(1e-12)


def paint(heat: torch.Tensor, size: tuple[int, int]) -> Image.Image:
    """Colour a heat map for overlaying it on an image: transparent where it is 0.

    Args:
        heat: (h, w) float in [0, 1].
        size: Width and height of the image, px.

    Returns:
        An RGBA image.
    """
    smooth = np.asarray(Image.fromarray(heat.numpy()).resize(size, Image.Resampling.BICUBIC))
    smooth = smooth.clip(0, 1)
    stops = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(smooth, stops, channel) for channel in _COLOURS.T]
    alpha = 255 * smooth
    return Image.fromarray(np.stack([*channels, alpha], axis=-1).round().astype(np.uint8))
