"""Build, load and save the model: transformers' `ResNetForImageClassification`.

It is the ResNet v1.5 of torchvision (stride on the 3x3), with the same initialization.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    BitImageProcessor,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer
from transformers.utils import logging

from imagenet_rn50.classes import Classes
from imagenet_rn50.recipe import DataRecipe, ModelRecipe
from imagenet_rn50.utils.errors import InputError, first_line
from imagenet_rn50.utils.files import follow_umask

_BILINEAR = 2  # PIL's number, which processor configurations store

_TO_TORCHVISION = (
    (r"^resnet\.embedder\.embedder\.convolution", "conv1"),
    (r"^resnet\.embedder\.embedder\.normalization", "bn1"),
    (r"^resnet\.encoder\.stages\.(\d+)\.layers\.", r"layer\1."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".bn."),
    (r"^classifier\.1\.", "fc."),
)


def build_model(recipe: ModelRecipe, classes: Classes) -> ResNetForImageClassification:
    """Build a freshly initialized model from torch's current random state.

    Args:
        recipe: Shape of the network.
        classes: The classes of the classifier.

    Returns:
        A model on the CPU, in training mode. It takes (B, 3, H, W) float32 and its `logits` are
        (B, num_classes).
    """
    return build_labelled(recipe, classes.labels)


def build_labelled(
    recipe: ModelRecipe, labels: Sequence[str], variant: Mapping[str, Any] | None = None
) -> ResNetForImageClassification:
    """Build a model like `build_model`, for classes without wnids.

    Args:
        recipe: Shape of the network.
        labels: One name per class; see `name_classes`.
        variant: Other fields of its configuration, such as `hidden_act`.
    """
    config = ResNetConfig(
        embedding_size=recipe.embedding_size,
        hidden_sizes=list(recipe.hidden_sizes),
        depths=list(recipe.depths),
        layer_type=recipe.layer_type,
        **(variant or {}),
    )
    name_classes(config, labels)
    model: ResNetForImageClassification = ResNetForImageClassification(config)
    if recipe.zero_init_last_norm:
        for norm in _last_norms(model):
            nn.init.zeros_(norm.get_parameter("weight"))
    model.train()
    return model


def name_classes(config: ResNetConfig, labels: Sequence[str]) -> None:
    """Set the names of a model's classes; a repeated name gets its index appended."""
    counts = Counter(labels)
    names = [name if counts[name] == 1 else f"{name} ({i})" for i, name in enumerate(labels)]
    config.id2label = dict(enumerate(names))
    config.label2id = {label: index for index, label in enumerate(names)}


def build_processor(data: DataRecipe) -> BitImageProcessor:
    """Build the processor that preprocesses images like training's evaluation."""
    return processor_of(data.eval_resize, data.eval_size, data.mean, data.std, _BILINEAR)


def processor_of(
    resize: int, size: int, mean: Sequence[float], std: Sequence[float], resample: int
) -> BitImageProcessor:
    """Build a processor that resizes the shorter side, crops the center and normalizes.

    Args:
        resize: Shorter side before the crop, px.
        size: Side of the crop, px.
        mean: Mean of each RGB channel, of values in [0, 1].
        std: Standard deviation of each RGB channel, of values in [0, 1].
        resample: PIL's number of the interpolation.
    """
    return BitImageProcessor(
        size={"shortest_edge": resize},
        crop_size={"height": size, "width": size},
        resample=resample,
        image_mean=list(mean),
        image_std=list(std),
        do_convert_rgb=True,
    )


def load_exported(folder: Path) -> PreTrainedModel:
    """Load an exported folder with transformers, in evaluation mode and float32."""
    logging.disable_progress_bar()  # loading takes a moment only
    model: PreTrainedModel = AutoModelForImageClassification.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    model.eval()
    return model


def load_whole(path: Path, name: str) -> PreTrainedModel:
    """Load the model in a folder like `load_exported`, and require all its weights.

    Args:
        path: The folder.
        name: Name of the model in messages.

    Raises:
        InputError: If it is damaged, or its weights do not fit its configuration.
    """
    logging.disable_progress_bar()  # loading takes a moment only
    try:
        network, info = AutoModelForImageClassification.from_pretrained(
            path,
            use_safetensors=True if (path / "model.safetensors").is_file() else None,
            trust_remote_code=False,  # None would ask whether to run code from the folder
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported below, with both sizes
            output_loading_info=True,
        )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise InputError(
            f"the model {name} cannot be loaded",
            expected="config.json and model.safetensors of an image classifier",
            found=first_line(error),
        ) from None
    problem = f"the weights of {name} do not fit its config.json"
    for tensor, found, expected in sorted(info["mismatched_keys"]):
        raise InputError(
            problem,
            expected=f"{tensor} of {tuple(expected)}, by config.json",
            found=f"one of {tuple(found)}",
        )
    if wrong := sorted(info["missing_keys"]) + sorted(info["unexpected_keys"]):
        found = f"{len(wrong)} missing or surplus tensors, such as {wrong[0]}"
        raise InputError(problem, found=found)
    loaded: PreTrainedModel = network
    return loaded


def load_processor(folder: Path) -> BaseImageProcessor:
    """Load the processor of a model, without running code from its folder.

    Raises:
        InputError: If it is damaged, or needs such code.
    """
    try:
        # None, the default, would ask whether to run code from the folder.
        loaded = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a damaged configuration can raise anything
        raise InputError(
            f"the processor in {folder} cannot be loaded",
            expected="a preprocessor_config.json of a processor in transformers",
            found=first_line(error),
        ) from None
    processor: BaseImageProcessor = loaded
    return processor


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Run the model on normalized images.

    Args:
        model: The model, or a wrapper around it.
        images: (B, 3, H, W) float.

    Returns:
        (B, num_classes) float.
    """
    logits: Tensor = model(pixel_values=images).logits
    return logits


def weights_digest(network: nn.Module) -> str:
    """Return a SHA-256 over names, types, shapes and values of all weights and buffers.

    It is equal for a checkpoint and its export, although their files differ.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with the mode of a new file.

    Args:
        path: The file.
        tensors: The tensors by name; they are made contiguous, as safetensors requires.
        metadata: Metadata of the header; by default PyTorch's, which transformers requires.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata=metadata or {"format": "pt"})
    follow_umask(path)


def to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of transformers' ResNet to torchvision's; the tensors are the same.

    Args:
        state: From a `ResNetForImageClassification` of the same depths.

    Returns:
        A state dict for `torchvision.models.resnet50().load_state_dict(strict=True)`.
    """
    return {_torchvision_name(name): tensor for name, tensor in state.items()}


def from_torchvision(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Rename a state dict of torchvision's or timm's ResNet to transformers' names.

    Args:
        state: Under torchvision's names; timm uses the same.
        names: The names in the transformers model.

    Returns:
        A state dict for it; unknown names are unchanged.
    """
    ours = {_torchvision_name(name): name for name in names}
    return {ours.get(name, name): tensor for name, tensor in state.items()}


def _torchvision_name(name: str) -> str:
    """Return torchvision's name of a parameter or buffer of transformers' ResNet."""
    for pattern, replacement in _TO_TORCHVISION:
        name = re.sub(pattern, replacement, name)
    branch = re.fullmatch(r"(layer\d+)\.(\d+)\.layer\.(\d+)\.(conv|bn)\.(.+)", name)
    if branch:
        stage, block, number, kind, leaf = branch.groups()
        return f"layer{int(stage[5:]) + 1}.{block}.{kind}{int(number) + 1}.{leaf}"
    shortcut = re.fullmatch(r"(layer\d+)\.(\d+)\.shortcut\.(conv|bn)\.(.+)", name)
    if shortcut:
        stage, block, kind, leaf = shortcut.groups()
        number = 0 if kind == "conv" else 1
        return f"layer{int(stage[5:]) + 1}.{block}.downsample.{number}.{leaf}"
    return name


def _last_norms(model: nn.Module) -> list[nn.Module]:
    """Return the norm that ends each residual branch."""
    blocks = (ResNetBasicLayer, ResNetBottleNeckLayer)
    branches = [m.layer[-1] for m in model.modules() if isinstance(m, blocks)]
    return [branch.get_submodule("normalization") for branch in branches]
