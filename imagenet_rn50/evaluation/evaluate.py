"""One pass of a model over a split, each image counted once on any number of ranks.

The processes that share one evaluation: started by torchrun or `accelerate launch`, or just one.

They speak once, at the end of a pass, so gloo will do on any device.

Evaluation of a model over a set of images, on any number of ranks, each image counted once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from imagenet_rn50.data.dataset import Batch
from imagenet_rn50.data.image_folder import ProcessorTransform
from imagenet_rn50.data.loader import build_loader, on_device
from imagenet_rn50.data.reader import ShardStore
from imagenet_rn50.data.sampler import DistributedBatchSampler
from imagenet_rn50.data.transforms import EvalTransform, Transform
from imagenet_rn50.evaluation.datasets import ImageSet
from imagenet_rn50.evaluation.load_model import Subject
from imagenet_rn50.evaluation.metrics import TOP_K, Accuracy, accuracy_of, count, widest_float
from imagenet_rn50.evaluation.records import Records, Result, result_of, rows_of
from imagenet_rn50.model import logits_of
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.shards.manifest import Split
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.logging import progress_bar
from imagenet_rn50.utils.signals import number_in_environment, require_joined

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
    loader = build_loader(
        shards,
        split,
        DistributedBatchSampler(
            start=0, stop=split.num_samples, batch=batch, rank=rank, world_size=world_size
        ),
        EvalTransform(resize=data.eval_resize, size=data.eval_size),
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    counts = torch.zeros(4, dtype=widest_float(device), device=device)
    # Closed at once: its workers would live on for some seconds, beside those of training.
    with closing(loader), evaluation_mode(model):
        for moved in on_device(loader, device, data.mean, data.std):
            logits = logits_of(model, moved.images)
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


_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """One process among those that share the work.

    Args:
        device: Where this process runs the model.
        rank: Which one it is, from 0.
        world_size: How many there are.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def add_up(self, values: Tensor) -> Tensor:
        """Returns the sum of a tensor on the CPU over all ranks; every rank calls it."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def raise_together(self, error: InputError | None) -> None:
        """Raises on every rank what any rank met; every rank calls it.

        Raises:
            InputError: The error of the first rank that has one.
        """
        found: list[str | None] = [str(error) if error else None]
        if self.world_size > 1:
            found = [None] * self.world_size
            dist.all_gather_object(found, str(error) if error else None)
        for text in found:
            if text is not None:
                raise InputError(text)


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Joins the ranks that a launcher started, by the variables that it set; alone without one.

    Raises:
        InputError: When the launcher did not say how to join, or started tasks that cannot.
    """
    world_size = number_in_environment("WORLD_SIZE") or 1
    on_gpu = torch.cuda.is_available()
    require_joined(world_size, on_gpu=on_gpu)
    local_rank = number_in_environment("LOCAL_RANK") or 0
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if world_size == 1:
        yield Ranks(device)
        return
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {world_size}, but {' and '.join(missing)} are not set",
            expected="all that torchrun or accelerate launch sets",
            fix="start with one of them, or unset WORLD_SIZE",
        )
    dist.init_process_group("gloo")
    try:
        yield Ranks(device, number_in_environment("RANK") or 0, world_size)
    finally:
        dist.destroy_process_group()


TransformName = Literal["both", "training", "processor"]


@dataclass(frozen=True)
class Evaluation:
    """What came of evaluating a model over a set of images.

    Args:
        results: One row for each way of counting; the first is the one that details speak of.
        records: What the model said of each image, in that first row.
    """

    results: tuple[Result, ...]
    records: Records


def evaluate(
    subject: Subject,
    images: ImageSet,
    *,
    ranks: Ranks,
    transform: TransformName = "both",
    flip: bool = False,
    batch: int = 128,
    num_workers: int = 0,
    real: Sequence[frozenset[int]] | None = None,
) -> Evaluation:
    """Evaluates a model; every rank calls it, and all get the same.

    Args:
        subject: The model.
        images: What to count over.
        ranks: The processes that share the work.
        transform: What prepares the pictures: training's evaluation transform, the processor that
            is shipped with the model, or one after the other.
        flip: Whether to add rows for logits that are averaged with those of the mirrored picture.
        batch: Images in a forward pass.
        num_workers: Loader processes of each rank.
        real: ReaL's classes for each image, to add rows for them.

    Raises:
        InputError: When a picture cannot be decoded, or the model's logits are not finite.
        RuntimeError: When an image was not counted exactly once.
    """
    if not len(images.labels):
        raise InputError(f"{images.name} holds no images", expected="one or more to count over")
    subject.network.to(ranks.device)
    truths = [(images.name, images.labels)] + ([("real", real)] if real is not None else [])
    results: list[Result] = []
    passes: list[Records] = []
    for name, prepare in _transforms(subject, transform).items():
        bar = progress_bar(total=len(images.labels), description=name, enabled=ranks.is_first)
        with bar:
            tables = _pass(
                subject, images, prepare, ranks, bar, flip=flip, batch=batch, workers=num_workers
            )
        for is_averaged, table in zip((False, True), tables, strict=False):
            passes.append(Records.of(table))
            results += [
                result_of(what, name, flip=is_averaged, records=passes[-1], truths=truth)
                for what, truth in truths
            ]
    results.sort(key=lambda row: row.name != images.name)  # stable: ReaL's rows come last
    return Evaluation(tuple(results), passes[0])


def _transforms(subject: Subject, wanted: TransformName) -> dict[str, Transform]:
    """Returns what prepares the pictures, by name."""
    found: dict[str, Transform] = {}
    if subject.data is not None:
        found["training"] = EvalTransform(subject.data.eval_resize, subject.data.eval_size)
    found["processor"] = ProcessorTransform.of(subject.processor)
    if wanted == "both":
        return found
    if wanted not in found:
        raise InputError(
            f"training's transform cannot do what the processor of {subject.name} does",
            expected="shortest side resized bilinearly, then a central square, normalised",
            found=type(subject.processor).__name__,
            fix="give --transform processor",
        )
    return {wanted: found[wanted]}


def _pass(
    subject: Subject,
    images: ImageSet,
    transform: Transform,
    ranks: Ranks,
    bar: tqdm[Any],
    *,
    flip: bool,
    batch: int,
    workers: int,
) -> Tensor:
    """Shows the model every image once.

    Returns:
        (1 or 2, n, 3 + k) float64, see `records`: plain, and averaged over the mirrored picture;
        complete on every rank.
    """
    num_images = len(images.labels)
    share = DistributedBatchSampler(0, num_images, batch, ranks.rank, ranks.world_size)
    loader = images.loader(share, transform, workers, ranks.device.type == "cuda")
    subset = None if images.subset is None else torch.from_numpy(images.subset).to(ranks.device)
    num_named = min(TOP_K, len(subject.labels) if subset is None else len(subset))
    table = torch.zeros(1 + flip, num_images, 3 + num_named, dtype=torch.float64)
    data = subject.data or DataRecipe()  # floats of the processor are normalised already
    problem = None
    with evaluation_mode(subject.network):
        try:
            for moved in on_device(loader, ranks.device, data.mean, data.std):
                for variant, logits in enumerate(_logits(subject.network, moved.images, flip)):
                    rows = rows_of(logits, moved.labels, subset)
                    table[variant].index_add_(0, moved.host.indices, rows.cpu())
                bar.update(min(len(moved.labels) * ranks.world_size, num_images - bar.n))
        except InputError as error:
            problem = error
    loader.close()
    ranks.raise_together(problem)
    return ranks.add_up(table)


def _logits(network: nn.Module, pictures: Tensor, flip: bool) -> list[Tensor]:
    """Returns the logits of a batch, and with `flip` their mean with those of the mirrored one.

    FFCV's `lr_tta` adds the logits of both (libffcv/ffcv-imagenet, train_imagenet.py); the mean
    names the same classes, and keeps the scale of confidence and loss.
    """
    logits = logits_of(network, pictures)
    if not flip:
        return [logits]
    return [logits, (logits + logits_of(network, pictures.flip(-1))) / 2]
