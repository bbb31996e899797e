"""Evaluation of a model over a set of images, on any number of ranks, each image counted once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from imagenet_rn50.console import progress_bar
from imagenet_rn50.errors import InputError
from imagenet_rn50.evaluation.image_sets import ImageSet
from imagenet_rn50.evaluation.metrics import TOP_K
from imagenet_rn50.evaluation.ranks import Ranks
from imagenet_rn50.evaluation.records import Records, rows_of
from imagenet_rn50.evaluation.results import Result, result_of
from imagenet_rn50.evaluation.subject import Subject
from imagenet_rn50.evaluation.validate import evaluation_mode
from imagenet_rn50.loading.device import on_device
from imagenet_rn50.loading.loader import Share
from imagenet_rn50.loading.processed import ProcessorTransform
from imagenet_rn50.loading.transforms import EvalTransform, Transform
from imagenet_rn50.model import logits_of
from imagenet_rn50.recipe import DataRecipe

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
    share = Share(0, num_images, batch, ranks.rank, ranks.world_size)
    loader = images.loader(share, transform, workers, ranks.device.type == "cuda")
    subset = None if images.subset is None else torch.from_numpy(images.subset).to(ranks.device)
    num_named = min(TOP_K, len(subject.labels) if subset is None else len(subset))
    table = torch.zeros(1 + flip, num_images, 3 + num_named, dtype=torch.float64)
    data = subject.data or DataRecipe()  # floats of the processor are normalised already
    problem = None
    with evaluation_mode(subject.network):
        try:
            for moved in on_device(loader, ranks.device, data.mean, data.std):
                for variant, logits in enumerate(_logits(subject.network, moved.pictures, flip)):
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
