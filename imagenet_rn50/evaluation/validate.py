"""One pass of a model over a split, each image counted once on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import torch
from torch import Tensor, nn

from imagenet_rn50.evaluation.metrics import Accuracy, accuracy_of, count, widest_float
from imagenet_rn50.loading.device import on_device
from imagenet_rn50.loading.loader import Batch, Share, make_loader
from imagenet_rn50.loading.store import ShardStore
from imagenet_rn50.loading.transforms import EvalTransform
from imagenet_rn50.model import logits_of
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.shards.manifest import Split

Reduce = Callable[[Tensor], Tensor]
"""Adds a tensor up over all ranks."""


def validate(
    model: nn.Module,
    shards: ShardStore,
    split: Split,
    data: DataRecipe,
    *,
    device: torch.device,
    batch: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    reduce: Reduce = lambda counts: counts,
    on_batch: Callable[[Batch, Tensor], None] = lambda batch, logits: None,
) -> Accuracy:
    """Evaluates a model through the training pipeline's evaluation transform.

    Args:
        model: The bare model, not wrapped for DDP: ranks run different numbers of batches.
        shards: Where the shards stand.
        split: The split to evaluate.
        data: Sizes and normalisation.
        device: Where the model is.
        batch: Images in a forward pass.
        num_workers: Loader processes.
        rank: This rank, from 0.
        world_size: Number of ranks that share the split.
        reduce: Adds the counts of all ranks; called once, by every rank.
        on_batch: Told every batch and its logits, (B, C) float on `device`.

    Returns:
        The accuracy over the whole split, equal on all ranks.
    """
    loader = make_loader(
        shards,
        split,
        Share(start=0, stop=split.num_samples, batch=batch, rank=rank, world_size=world_size),
        EvalTransform(resize=data.eval_resize, size=data.eval_size),
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    counts = torch.zeros(4, dtype=widest_float(device), device=device)
    # Closed at once: its workers would live on for some seconds, beside those of training.
    with closing(loader), evaluation_mode(model):
        for moved in on_device(loader, device, data.mean, data.std):
            logits = logits_of(model, moved.pictures)
            counts += count(logits, moved.labels)
            on_batch(moved.host, logits)
    return accuracy_of(reduce(counts), split.num_samples)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switches to evaluation without gradients, and back to what was before."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
