"""Evaluation of an exported folder, as anybody who downloads the model would get it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor

from imagenet_rn50.classes import Classes
from imagenet_rn50.console import progress_bar
from imagenet_rn50.errors import InputError
from imagenet_rn50.evaluation.metrics import top_classes
from imagenet_rn50.evaluation.validate import validate
from imagenet_rn50.loading.loader import Batch
from imagenet_rn50.loading.store import ShardStore
from imagenet_rn50.model import load_exported
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.shards.manifest import Manifest

_NEEDED = ("config.json", "model.safetensors", "preprocessor_config.json")


def evaluate_exported(
    model: Path, shards: ShardStore, *, split: str, batch: int, num_workers: int
) -> dict[str, Any]:
    """Evaluates an exported model over a split of shards.

    Args:
        model: Exported folder.
        shards: Where the shards stand.
        split: Which split, `validation` or `train`.
        batch: Images in a forward pass.
        num_workers: Loader processes.

    Returns:
        `top1` and `top5` in [0, 1], `loss` in nats, `num_images`.

    Raises:
        InputError: When a file of the model is missing, or it has other classes than the shards.
        RuntimeError: When the two ways of counting disagree.
    """
    data = _load_sizes(model)
    chosen = Manifest.load(shards.folder).split(split)
    network = load_exported(model)
    num_classes = len(Classes.load(shards.folder))
    found = network.config.num_labels
    if found != num_classes:
        raise InputError(
            f"{model} and {shards.folder} do not speak of the same classes",
            expected=f"a model of {num_classes} classes",
            found=f"one of {found}",
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)  # type: ignore[arg-type]  # a decorator hides its self
    metric = _load_metric()
    with progress_bar(total=chosen.num_samples, description="evaluate") as bar:

        def on_batch(loaded: Batch, logits: Tensor) -> None:
            predictions = top_classes(logits).tolist()
            metric.add_batch(predictions=predictions, references=loaded.labels.tolist())
            bar.update(len(predictions))

        accuracy = validate(
            network,
            shards,
            chosen,
            data,
            device=device,
            batch=batch,
            num_workers=num_workers,
            on_batch=on_batch,
        )
    measured: dict[str, Any] = metric.compute()
    if any(getattr(accuracy, key) != value for key, value in measured.items()):
        raise RuntimeError(f"counted {accuracy}, but the metric says {measured}")
    return accuracy.as_dict()


def _load_sizes(model: Path) -> DataRecipe:
    """Returns sizes and normalisation as the shipped processor states them."""
    missing = [name for name in _NEEDED if not (model / name).is_file()]
    if missing:
        raise InputError(
            f"{model} is not an exported model",
            expected=", ".join(_NEEDED),
            found=f"no {', no '.join(missing)}" if model.is_dir() else "no such folder",
            fix="python -m imagenet_rn50 export --run RUN --out DIR",
        )
    processor = AutoImageProcessor.from_pretrained(model)
    return DataRecipe(
        eval_resize=processor.size["shortest_edge"],
        eval_size=processor.crop_size["height"],
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
    )


def _load_metric() -> Any:
    """Returns our metric; `evaluate` takes seconds to import, so only here."""
    from imagenet_rn50.evaluation.topk_accuracy import TopKAccuracy

    return TopKAccuracy(keep_in_memory=True)
