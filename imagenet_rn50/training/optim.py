"""The optimizer: SGD with weight decay on weights alone."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD

from imagenet_rn50.recipe import OptimizerRecipe


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> SGD:
    """Builds the optimizer with two groups of parameters.

    Convolution and linear weights decay; norms and biases, all parameters of one dimension, do not
    (He et al. 2019, "Bag of Tricks", section 3.1).

    Args:
        model: The model, on its device.
        recipe: Hyperparameters.
    """
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # Plain SGD cannot look ahead without momentum.
    nesterov = recipe.nesterov and recipe.momentum > 0
    return SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov)


def set_learning_rate(optimizer: SGD, lr: float) -> None:
    """Sets the learning rate of every group, in place."""
    for group in optimizer.param_groups:
        group["lr"] = lr
