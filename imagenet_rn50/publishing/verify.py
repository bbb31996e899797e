"""An export proves itself: what was written computes what was trained."""

from __future__ import annotations

from itertools import count as positions

import torch
from torch import Tensor, nn

from imagenet_rn50.loading.device import on_device
from imagenet_rn50.loading.loader import Share, make_loader
from imagenet_rn50.loading.store import ShardStore
from imagenet_rn50.loading.transforms import EvalTransform
from imagenet_rn50.model import logits_of
from imagenet_rn50.publishing.formats import Dtype, Logits
from imagenet_rn50.publishing.wording import Format
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.shards.manifest import VALIDATION, Manifest

_SAMPLE = 128  # images of the validation split
_BATCHES = (1, 4)  # an exported graph must take more sizes than the one it was traced with


def tolerance(form: Format, dtype: Dtype) -> float:
    """Returns how far logits may differ, as a part of the largest one.

    Returns:
        1e-5 where the same numbers are computed with, though by kernels that torch may choose
        otherwise where they lie otherwise in memory; 1e-4 where another runtime fuses them; 2e-2
        where weights have 11 bits instead of 24.
    """
    if dtype == "float16":
        return 2e-2
    return 1e-4 if form == "onnx" else 1e-5


@torch.inference_mode()
def compare_logits(model: nn.Module, exported: Logits, size: int, allowed: float) -> float:
    """Compares logits on random pictures, in batches of several sizes.

    Args:
        model: What was trained, in evaluation mode.
        exported: What was written.
        size: Side of the pictures, px.
        allowed: From `tolerance`.

    Returns:
        The largest difference, as a part of the largest logit.

    Raises:
        RuntimeError: When they differ by more than is allowed.
    """
    worst = 0.0
    for seed, batch in zip(positions(), _BATCHES, strict=False):
        generator = torch.Generator().manual_seed(seed)
        pictures = torch.randn(batch, 3, size, size, generator=generator)
        worst = max(worst, _difference(logits_of(model, pictures), exported(pictures), allowed))
    return worst


@torch.inference_mode()
def compare_on_shards(
    model: nn.Module, exported: Logits, shards: ShardStore, data: DataRecipe, allowed: float
) -> tuple[int, int]:
    """Compares logits and first classes, on the first images of the validation split.

    Args:
        model: What was trained, in evaluation mode.
        exported: What was written.
        shards: Where the pictures stand.
        data: Sizes and normalisation.
        allowed: From `tolerance`.

    Returns:
        For how many images the same class comes first, and how many there were.

    Raises:
        RuntimeError: When logits differ by more than is allowed, or another class comes first where
            our logits of both do not lie closer together than that.
    """
    split = Manifest.load(shards.folder).split(VALIDATION)
    num_images = min(_SAMPLE, split.num_samples)
    loader = make_loader(
        shards,
        split,
        Share(start=0, stop=num_images, batch=32, rank=0, world_size=1),
        EvalTransform(resize=data.eval_resize, size=data.eval_size),
        num_workers=0,
        pin_memory=False,
    )
    same = 0
    for batch in on_device(loader, torch.device("cpu"), data.mean, data.std):
        ours, theirs = logits_of(model, batch.pictures), exported(batch.pictures)
        _difference(ours, theirs, allowed)
        same += _same_first(ours, theirs, allowed)
    loader.close()
    return same, num_images


def _same_first(ours: Tensor, theirs: Tensor, allowed: float) -> int:
    """Returns for how many pictures the same class comes first.

    Raises:
        RuntimeError: When another one does, and not for being as good as equal.
    """
    named = theirs.argmax(1, keepdim=True)
    margins = ours.max(1).values - ours.gather(1, named)[:, 0]
    if num_wrong := int((margins > allowed * ours.abs().max()).sum()):
        raise RuntimeError(
            f"the exported model names another class first for {num_wrong} of {len(ours)} pictures"
        )
    return int((ours.argmax(1) == named[:, 0]).sum())


def _difference(ours: Tensor, theirs: Tensor, allowed: float) -> float:
    """Returns the largest difference, as a part of the largest logit.

    Raises:
        RuntimeError: When it is more than is allowed.
    """
    largest = ours.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    difference = ((ours - theirs.float()).abs().max() / largest).item()
    if not difference <= allowed:  # nan is no agreement either
        raise RuntimeError(
            f"the exported model's logits differ by {difference:.3g} of the largest; "
            f"at most {allowed:.3g} is allowed"
        )
    return difference
