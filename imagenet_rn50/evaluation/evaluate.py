"""One pass of a model over labelled images, each counted once on any number of ranks.

`run_batches` is the only loop. `validate_batches` sums counts on the device, for training;
`evaluate` keeps what the model predicted for each image, for metrics.json and the report.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from accelerate.utils import reduce as all_reduce
from torch import Tensor, nn
from tqdm import tqdm

from imagenet_rn50.classes import TOP_K
from imagenet_rn50.data.dataset import Batch
from imagenet_rn50.data.image_folder import ProcessorTransform
from imagenet_rn50.data.loader import DeviceBatch, Loader, build_loader, on_device
from imagenet_rn50.data.sampler import DistributedBatchSampler
from imagenet_rn50.data.transforms import EvalTransform, Transform
from imagenet_rn50.evaluation.datasets import ImageSet
from imagenet_rn50.evaluation.load_model import LoadedModel
from imagenet_rn50.evaluation.metrics import Accuracy, accuracy_of, count, widest_float
from imagenet_rn50.evaluation.predictions import Predictions, Result, result_of, rows_of
from imagenet_rn50.model import logits_of
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.shards.manifest import Split
from imagenet_rn50.shards.store import ShardStore
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.logging import progress_bar
from imagenet_rn50.utils.signals import check_num_gpus, check_world_size, read_int_env

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks."""

TransformName = Literal["both", "training", "processor"]

_JOIN_VARIABLES = ("RANK", "MASTER_ADDR", "MASTER_PORT")


def validation_loader(
    shards: ShardStore,
    split: Split,
    data: DataRecipe,
    *,
    device: torch.device,
    batch: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Return this rank's share of a split, through the training pipeline's evaluation transform.

    Its workers live until it is closed: `validate_batches` may use one loader many times.

    Args:
        shards: The shards.
        split: The split to evaluate.
        data: Sizes.
        device: Device of the model.
        batch: Images per forward pass.
        num_workers: Loader workers.
        rank: This rank, from 0.
        world_size: Number of ranks that share the split.
    """
    return build_loader(
        shards,
        split,
        DistributedBatchSampler(
            start=0, stop=split.num_samples, batch=batch, rank=rank, world_size=world_size
        ),
        EvalTransform(resize=data.eval_resize, size=data.eval_size),
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )


def validate_batches(
    model: nn.Module,
    loader: Loader,
    data: DataRecipe,
    num_samples: int,
    *,
    device: torch.device,
    reduce: Reduce = lambda counts: counts,
    on_batch: Callable[[Batch, Tensor], None] = lambda batch, logits: None,
) -> Accuracy:
    """Evaluate a model on a whole split, of which each rank reads its share.

    Args:
        model: The unwrapped model, not DDP: ranks run different numbers of batches.
        loader: From `validation_loader`; stays open.
        data: Mean and standard deviation to normalize with.
        num_samples: Images of the split.
        device: Device of the model.
        reduce: Sums the counts over all ranks; called once by every rank.
        on_batch: Called with each batch on the host and its logits, (B, C) float on `device`.

    Returns:
        The accuracy over the whole split, equal on all ranks.
    """
    counts = torch.zeros(4, dtype=widest_float(device), device=device)

    def add(moved: DeviceBatch, logits: Tensor) -> None:
        counts.add_(count(logits, moved.labels))
        on_batch(moved.host, logits)

    run_batches(model, loader, data, device, add)
    return accuracy_of(reduce(counts), num_samples)


def run_batches(
    model: nn.Module,
    loader: Loader,
    data: DataRecipe,
    device: torch.device,
    on_batch: Callable[[DeviceBatch, Tensor], None],
) -> None:
    """Run a model over all batches of a loader, in evaluation mode and without gradients.

    Args:
        model: The unwrapped model, on `device`.
        loader: The loader; stays open.
        data: Mean and standard deviation to normalize with.
        device: Where to move each batch.
        on_batch: Called with each batch on the device and its logits, (B, C) float.
    """
    with evaluation_mode(model):
        for moved in on_device(loader, device, data.mean, data.std):
            on_batch(moved, logits_of(model, moved.images))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode without gradients, and restore the mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


@contextmanager
def joined_ranks() -> Iterator[PartialState]:
    """Join the processes that a launcher started; a process without a launcher is alone.

    Raises:
        InputError: If the launcher's variables are incomplete, processes did not join, or there are
            more of them than GPUs.
    """
    world_size = read_int_env("WORLD_SIZE") or 1
    missing = [name for name in _JOIN_VARIABLES if not os.environ.get(name)]
    if world_size > 1 and missing:
        raise InputError(
            f"WORLD_SIZE is {world_size}, but {' and '.join(missing)} are not set",
            expected="all variables that torchrun or accelerate launch sets",
            fix="start with one of them, or unset WORLD_SIZE",
        )
    on_gpu = torch.cuda.is_available()
    if world_size == 1:  # before Accelerate waits for other tasks of an MPI launch
        check_world_size(1, on_gpu=on_gpu)
    if on_gpu:
        check_num_gpus(torch.cuda.device_count())
    state = PartialState(cpu=not on_gpu)
    try:
        check_world_size(state.num_processes, on_gpu=on_gpu)
        yield state
    finally:
        state.destroy_process_group()


def _raise_together(error: InputError | None) -> None:
    """Raise on every rank the first error that any rank met; every rank calls it."""
    for message in gather_object([str(error) if error else None]):
        if message is not None:
            raise InputError(message)


@dataclass(frozen=True)
class Evaluation:
    """The results of a model on a set of images.

    Args:
        results: One row per transform, flip averaging and labels; details are for the first row.
        predictions: The predictions for each image in the first row.
    """

    results: tuple[Result, ...]
    predictions: Predictions


def evaluate(
    loaded: LoadedModel,
    images: ImageSet,
    *,
    transform: TransformName = "both",
    flip: bool = False,
    batch: int = 128,
    num_workers: int = 0,
    real: Sequence[frozenset[int]] | None = None,
) -> Evaluation:
    """Evaluate a model; every rank must call it, and all get the same result.

    Args:
        loaded: The model.
        images: The images.
        transform: Training's evaluation transform, the model's own processor, or both in turn.
        flip: Whether to add rows with logits averaged over the image and its mirror image.
        batch: Images per forward pass.
        num_workers: Loader workers of each rank.
        real: ReaL's classes for each image, to add rows for them.

    Raises:
        InputError: If an image cannot be decoded, or the model's logits are not finite.
        RuntimeError: If an image was not counted exactly once.
    """
    if not len(images.labels):
        raise InputError(f"{images.name} holds no images", expected="one or more")
    # The state of `joined_ranks` if it was called, else a single process.
    state = PartialState(cpu=not torch.cuda.is_available())
    loaded.network.to(state.device)
    targets = [(images.name, images.labels)] + ([("real", real)] if real is not None else [])
    results: list[Result] = []
    passes: list[Predictions] = []
    for name, prepare in _transforms(loaded, transform).items():
        bar = progress_bar(
            total=len(images.labels), description=name, enabled=state.is_main_process
        )
        with bar:
            tables = _pass(
                loaded, images, prepare, state, bar, flip=flip, batch=batch, workers=num_workers
            )
        for is_averaged, table in zip((False, True), tables, strict=False):
            passes.append(Predictions.of(table))
            results += [
                result_of(
                    labels_name, name, flip=is_averaged, predictions=passes[-1], targets=truth
                )
                for labels_name, truth in targets
            ]
    results.sort(key=lambda row: row.name != images.name)  # stable: ReaL's rows come last
    return Evaluation(tuple(results), passes[0])


def _transforms(loaded: LoadedModel, wanted: TransformName) -> dict[str, Transform]:
    """Return the transforms to evaluate with, by name."""
    found: dict[str, Transform] = {}
    if loaded.data is not None:
        found["training"] = EvalTransform(loaded.data.eval_resize, loaded.data.eval_size)
    found["processor"] = ProcessorTransform.of(loaded.processor)
    if wanted == "both":
        return found
    if wanted not in found:
        raise InputError(
            f"training's transform cannot express the processor of {loaded.name}",
            expected="bilinear resizing of the shorter side, center crop, normalization",
            found=type(loaded.processor).__name__,
            fix="pass --transform processor",
        )
    return {wanted: found[wanted]}


def _pass(
    loaded: LoadedModel,
    images: ImageSet,
    transform: Transform,
    state: PartialState,
    bar: tqdm[Any],
    *,
    flip: bool,
    batch: int,
    workers: int,
) -> Tensor:
    """Run the model over every image once.

    Returns:
        (1 or 2, n, 3 + k) float64, see `rows_of`: plain, and with `flip` averaged over the mirrored
        image; complete on every rank.
    """
    num_images = len(images.labels)
    network, device = loaded.network, state.device
    sampler = DistributedBatchSampler(
        0, num_images, batch, state.process_index, state.num_processes
    )
    loader = images.loader(sampler, transform, workers, device.type == "cuda")
    subset = None if images.subset is None else torch.from_numpy(images.subset).to(device)
    num_named = min(TOP_K, len(loaded.labels) if subset is None else len(subset))
    table = torch.zeros(1 + flip, num_images, 3 + num_named, dtype=torch.float64)

    def record(moved: DeviceBatch, logits: Tensor) -> None:
        variants = [logits]
        if flip:
            # FFCV's `lr_tta` adds both logits (libffcv/ffcv-imagenet, train_imagenet.py); the mean
            # predicts the same classes and keeps the scale of confidence and loss.
            variants.append((logits + logits_of(network, moved.images.flip(-1))) / 2)
        for variant, values in enumerate(variants):
            rows = rows_of(values, moved.labels, subset)
            table[variant].index_add_(0, moved.host.indices, rows.cpu())
        bar.update(min(len(moved.labels) * state.num_processes, num_images - bar.n))

    error = None
    data = loaded.data or DataRecipe()  # a processor's floats are already normalized
    try:
        with closing(loader):  # or its workers would outlive it for seconds
            run_batches(network, loader, data, device, record)
    except InputError as caught:
        error = caught
    _raise_together(error)
    summed: Tensor = all_reduce(table.to(device), reduction="sum")
    return summed.cpu()
