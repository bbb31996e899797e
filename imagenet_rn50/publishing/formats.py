"""Write an exported model in each format, load it back as users do, and compare its logits."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import count as positions
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import resnet50
from transformers import BaseImageProcessor, ResNetConfig, ResNetForImageClassification
from transformers.utils import logging

from imagenet_rn50.data.loader import build_loader, on_device
from imagenet_rn50.data.sampler import DistributedBatchSampler
from imagenet_rn50.data.transforms import EvalTransform
from imagenet_rn50.model import load_exported, logits_of, save_tensors, to_torchvision
from imagenet_rn50.pretrained_config import VARIANT
from imagenet_rn50.publishing.layout import (
    CONFIG,
    ONNX_MODEL,
    PROCESSOR,
    TORCHVISION_WEIGHTS,
    TRANSFORMERS_WEIGHTS,
)
from imagenet_rn50.publishing.onnx_models import Logits, require_packages, write_onnx
from imagenet_rn50.publishing.snippets import Format
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.shards.manifest import VALIDATION, Manifest
from imagenet_rn50.shards.store import ShardStore
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import follow_umask

Dtype = Literal["float32", "float16"]


def require_format(
    model: ResNetForImageClassification, processor: BaseImageProcessor, form: Format, dtype: Dtype
) -> None:
    """Check that a model can be written in a format, before writing anything.

    Raises:
        InputError: If architecture or data type do not fit, or packages are missing.
    """
    if form == "torchvision":
        num_classes = model.get_submodule("classifier.1").get_parameter("weight").shape[0]
        with torch.device("meta"):
            theirs = {n: t.shape for n, t in resnet50(num_classes=num_classes).state_dict().items()}
        ours = {n: t.shape for n, t in to_torchvision(model.state_dict()).items()}
        if theirs != ours:
            raise InputError(
                "torchvision has no such model",
                expected="the recipe's model to be ResNet-50: torchvision.models.resnet50",
                found=f"{len(ours.items() - theirs.items())} of {len(ours)} tensors differ",
                fix="export with --format transformers or onnx",
            )
        _require_plain(model.config, processor)
    if form == "onnx":
        require_packages("--format onnx")
        if dtype != "float32":
            raise InputError(
                "an ONNX model must be float32",
                expected="--dtype float32",
                found=f"--dtype {dtype}",
                fix="convert it with onnxruntime's tools, for the hardware that it will run on",
            )


def _require_plain(config: ResNetConfig, processor: BaseImageProcessor) -> None:
    """Check that torchvision's ResNet-50 and the card's snippet can express the configuration.

    Raises:
        InputError: If a field has another value.
    """
    defaults, settings = ResNetConfig(), processor.to_dict()
    fields = [(CONFIG, n, getattr(config, n), getattr(defaults, n)) for n in VARIANT]
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    fields += [(PROCESSOR, step, settings.get(step), True) for step in steps]
    factor = round(1 / (settings.get("rescale_factor") or 1), 3)
    fields.append((PROCESSOR, "1 / rescale_factor", factor, 255.0))
    for file, name, found, expected in fields:
        if found != expected:
            raise InputError(
                f"torchvision's ResNet-50 does not support {file}",
                expected=f"{name} {expected}",
                found=f"{name} {found}",
                fix="export with --format transformers or onnx",
            )


def write_model(model: ResNetForImageClassification, folder: Path, form: Format) -> Logits:
    """Write configuration and weights, and load them back.

    Args:
        model: From `converted`.
        folder: The folder to write to.
        form: Format of the weights.

    Returns:
        The written model, loaded as users do; it computes in float32.
    """
    logging.disable_progress_bar()  # writing takes a moment only
    if form == "onnx":
        model.config.save_pretrained(folder)
        return write_onnx(model, folder / ONNX_MODEL)
    write = _write_transformers if form == "transformers" else _write_torchvision
    return write(model, folder)


def _write_transformers(model: ResNetForImageClassification, folder: Path) -> Logits:
    model.save_pretrained(folder)
    follow_umask(folder / TRANSFORMERS_WEIGHTS)
    exported = load_exported(folder)
    _require_same(model.state_dict(), exported.state_dict())
    return lambda images: logits_of(exported, images)


def _write_torchvision(model: ResNetForImageClassification, folder: Path) -> Logits:
    """Write torchvision's state dict as safetensors; a .pth is a pickle, which can run code."""
    model.config.save_pretrained(folder)
    state = to_torchvision(model.state_dict())
    save_tensors(folder / TORCHVISION_WEIGHTS, state)
    exported = resnet50(num_classes=len(state["fc.bias"])).eval()
    exported.load_state_dict(load_file(folder / TORCHVISION_WEIGHTS), strict=True)
    _require_same(state, exported.state_dict())
    return lambda images: exported(images)


def _require_same(written: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> None:
    """Check that weights are bit-identical.

    Raises:
        RuntimeError: If they differ.
    """
    pairs = ((name, tensor.to(loaded[name].dtype)) for name, tensor in written.items())
    wrong = [name for name, tensor in pairs if not torch.equal(tensor, loaded[name])]
    if wrong:
        raise RuntimeError(f"the exported weights differ: {', '.join(wrong[:3])}")


def converted(model: ResNetForImageClassification, dtype: Dtype) -> ResNetForImageClassification:
    """Return a copy with floating-point tensors of another type; counters stay integers.

    Raises:
        InputError: If a value is too large for the type.
    """
    other: ResNetForImageClassification = copy.deepcopy(model)
    other.to(getattr(torch, dtype))
    infinite = [name for name, t in other.state_dict().items() if not t.isfinite().all()]
    if infinite:
        raise InputError(f"{infinite[0]} does not fit into {dtype}", fix="export in float32")
    return other


_SAMPLE = 128  # images of the validation split
_BATCHES = (1, 4)  # an exported graph must accept other sizes than the one it was traced with


def tolerance(form: Format, dtype: Dtype) -> float:
    """Return the largest allowed difference of logits, as a fraction of the largest logit.

    Returns:
        1e-5 for the same weights, because torch chooses kernels by memory layout; 1e-4 for
        onnxruntime, which fuses operations; 2e-2 for weights of 11 bits instead of 24.
    """
    if dtype == "float16":
        return 2e-2
    return 1e-4 if form == "onnx" else 1e-5


@torch.inference_mode()
def compare_logits(model: nn.Module, exported: Logits, size: int, allowed: float) -> float:
    """Compare logits on random images, in batches of several sizes.

    Args:
        model: The original model, in evaluation mode.
        exported: The exported model.
        size: Side of the images, px.
        allowed: From `tolerance`.

    Returns:
        The largest difference, as a fraction of the largest logit.

    Raises:
        RuntimeError: If they differ by more than `allowed`.
    """
    worst = 0.0
    for seed, batch in zip(positions(), _BATCHES, strict=False):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(batch, 3, size, size, generator=generator)
        worst = max(worst, _difference(logits_of(model, images), exported(images), allowed))
    return worst


@torch.inference_mode()
def compare_on_shards(
    model: nn.Module, exported: Logits, shards: ShardStore, data: DataRecipe, allowed: float
) -> tuple[int, int]:
    """Compare logits and top-1 classes on the first images of the validation split.

    Args:
        model: The original model, in evaluation mode.
        exported: The exported model.
        shards: The shards.
        data: Sizes and normalization.
        allowed: From `tolerance`.

    Returns:
        The number of images with the same top-1 class, and the number compared.

    Raises:
        RuntimeError: If logits differ by more than `allowed`, or top-1 classes differ whose logits
            are farther apart than that.
    """
    split = Manifest.load(shards.folder).split(VALIDATION)
    num_images = min(_SAMPLE, split.num_samples)
    loader = build_loader(
        shards,
        split,
        DistributedBatchSampler(start=0, stop=num_images, batch=32, rank=0, world_size=1),
        EvalTransform(resize=data.eval_resize, size=data.eval_size),
        num_workers=0,
        pin_memory=False,
    )
    same = 0
    for batch in on_device(loader, torch.device("cpu"), data.mean, data.std):
        ours, theirs = logits_of(model, batch.images), exported(batch.images)
        _difference(ours, theirs, allowed)
        same += _num_same_top1(ours, theirs, allowed)
    loader.close()
    return same, num_images


def _num_same_top1(ours: Tensor, theirs: Tensor, allowed: float) -> int:
    """Return the number of images with the same top-1 class.

    Raises:
        RuntimeError: If classes differ whose logits are not nearly equal.
    """
    named = theirs.argmax(1, keepdim=True)
    margins = ours.max(1).values - ours.gather(1, named)[:, 0]
    if num_wrong := int((margins > allowed * ours.abs().max()).sum()):
        raise RuntimeError(
            f"the exported model predicts another top-1 class for {num_wrong} of {len(ours)} images"
        )
    return int((ours.argmax(1) == named[:, 0]).sum())


def _difference(ours: Tensor, theirs: Tensor, allowed: float) -> float:
    """Return the largest difference, as a fraction of the largest logit.

    Raises:
        RuntimeError: If it is more than `allowed`.
    """
    largest = ours.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    difference = ((ours - theirs.float()).abs().max() / largest).item()
    if not difference <= allowed:  # also true for nan
        raise RuntimeError(
            f"the exported model's logits differ by {difference:.3g} of the largest; "
            f"at most {allowed:.3g} is allowed"
        )
    return difference
