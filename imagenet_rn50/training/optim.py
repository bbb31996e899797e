"""The optimizer: weight decay on weights alone, fused where that is safe."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from imagenet_rn50.recipe import OptimizerRecipe


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe, *, fused: bool = False) -> Optimizer:
    """Builds the optimizer with two groups of parameters.

    Convolution and linear weights decay; norms and biases, all parameters of one dimension, do not
    (He et al. 2019, "Bag of Tricks", section 3.1), unless the recipe says so.

    LAMB scales the update of each decayed weight by its norm (You et al. 2020); parameters without
    decay take Adam's step. timm's form, as "ResNet strikes back" used it.

    Args:
        model: The model.
        recipe: Hyperparameters.
        fused: Whether SGD and AdamW update all parameters in one launch on a GPU. Not for fp16: a
            fused step does not tell the GradScaler that it was skipped, and where SGD's very first
            step is, its momentum is left as uninitialised memory (torch 2.14).
    """
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {
            "params": others,
            "weight_decay": recipe.weight_decay if recipe.decay_norms_and_biases else 0.0,
        },
    ]
    if recipe.name == "adamw":
        return AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=fused)
    if recipe.name == "lamb":
        from timm.optim import Lamb  # timm registers all of its models first, which takes seconds

        lamb: Optimizer = Lamb(groups, lr=recipe.lr, betas=recipe.betas)
        return lamb
    # Plain SGD cannot look ahead without momentum.
    nesterov = recipe.nesterov and recipe.momentum > 0
    return SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov, fused=fused)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of every group, in place."""
    for group in optimizer.param_groups:
        group["lr"] = lr
