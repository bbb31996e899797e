"""Load the model to evaluate, from a run directory, an exported folder or the Hub.

Nothing that is loaded is executed: weights are safetensors, and a model's own code is not run.

`check_classes` compares a model's classes with those of the data. Names of ImageNet's classes
differ from model to model ("tench, Tinca tinca" or "tench"), so only the first name of a class is
compared, and only a contradiction is an error: a label that names another class, or labels of which
none is known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL.Image import Resampling
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, ResNetForImageClassification
from transformers.image_processing_utils import BaseImageProcessor

from imagenet_rn50.classes import FILE_NAME as CLASSES_FILE
from imagenet_rn50.classes import WNID, Classes
from imagenet_rn50.model import (
    build_model,
    build_processor,
    load_processor,
    load_whole,
    weights_digest,
)
from imagenet_rn50.pretrained import download, is_hub_id
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.runs.checkpoint import (
    MANIFEST,
    SelectedWeights,
    Weights,
    Which,
    select_checkpoint,
    select_weights,
)
from imagenet_rn50.runs.run_dir import RunDir
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.formatting import quoted

_EXPORTED = ("config.json", "model.safetensors", "preprocessor_config.json")
_OTHER_WEIGHTS = (".safetensors", ".onnx")  # what torchvision or onnxruntime loads
_STEPS = ("resize", "center_crop", "rescale", "normalize")


@dataclass(frozen=True)
class LoadedModel:
    """A model to evaluate.

    Args:
        name: The folder or Hub id, as given.
        network: The model; its input is (B, 3, H, W) float32, normalized.
        labels: Its class names, by index.
        processor: Its processor; for a run, the one that an export would have.
        data: Sizes and normalization for training's evaluation transform; None if that cannot
            express the processor.
        classes: Its classes with wnids, if its folder has them.
        checkpoint: Identity of the weights, for metrics.json.
    """

    name: str
    network: nn.Module
    labels: tuple[str, ...]
    processor: BaseImageProcessor
    data: DataRecipe | None
    classes: Classes | None
    checkpoint: dict[str, Any]


def load_model(model: str, which: Which = "best", weights: Weights = "auto") -> LoadedModel:
    """Load the model of a run directory, a checkpoint of one, an exported folder or the Hub.

    Args:
        model: A folder, or a Hub id: `microsoft/resnet-50`, or `user/name@revision`.
        which: Checkpoint of a run: best validation top-1, or newest.
        weights: Weights of a run: averaged (EMA), raw, or whichever scored better.

    Raises:
        InputError: If there is no such model, or it is incomplete or damaged.
    """
    path = Path(model)
    is_run = path.is_dir() and not any((path / name).is_file() for name in _EXPORTED)
    is_run |= (path / MANIFEST).is_file()
    is_other = path.is_dir() and not is_run or is_hub_id(model)
    if is_other and (which, weights) != ("best", "auto"):
        raise InputError(
            f"--checkpoint and --weights apply to runs, and {model} is not a run",
            expected="a run directory",
            fix="omit them; `export --weights` selects the weights of an export",
        )
    if path.is_file():
        raise InputError(
            f"{model} is a file, without classes and preprocessing",
            expected="a run directory, an exported folder, or a Hub id like microsoft/resnet-50",
            fix=f"python -m imagenet_rn50 export --from {quoted(model)} --out DIR, "
            "and evaluate DIR",
        )
    if is_run:
        loaded = _of_run(path, which, weights)
    elif path.is_dir():
        loaded = _exported(path, model)
    elif is_hub_id(model):
        folder = download(model, [*_EXPORTED, CLASSES_FILE])
        loaded = replace(_exported(folder, model), checkpoint={"hub_commit": folder.name})
    else:
        raise InputError(
            f"there is no model {model}",
            expected="a run directory, an exported folder, or a Hub id like microsoft/resnet-50",
            found="no such folder",
        )
    identity = loaded.checkpoint | {"weights_sha256": weights_digest(loaded.network)}
    return replace(loaded, checkpoint=identity)


def _of_run(path: Path, which: Which, weights: Weights) -> LoadedModel:
    """Load the model of a run, or of one of its checkpoints."""
    is_checkpoint = (path / MANIFEST).is_file()
    if is_checkpoint and which != "best":
        raise InputError(
            f"--checkpoint applies to runs, and {path} is a checkpoint of one",
            expected="a run directory",
            fix="omit --checkpoint",
        )
    run = RunDir(path.resolve().parent.parent if is_checkpoint else path)
    recipe, classes = run.recipe(), run.classes()
    if is_checkpoint:
        choice = select_weights(path.resolve(), weights)
    else:
        choice = select_checkpoint(run, which, weights)
    return LoadedModel(
        name=str(path),
        network=network_of(run, choice),
        labels=classes.labels,
        processor=build_processor(recipe.data),
        data=recipe.data,
        classes=classes,
        checkpoint={
            "name": choice.checkpoint.folder.name,
            "which": choice.which,
            "weights": choice.kind,
            "samples_seen": choice.checkpoint.samples_seen,
            "is_best": choice.checkpoint.is_best,
        },
    )


def network_of(run: RunDir, choice: SelectedWeights) -> ResNetForImageClassification:
    """Build the model of a run, with the selected weights.

    Raises:
        InputError: If they do not fit the recipe and the classes of the run.
    """
    classes = run.classes()
    network = build_model(run.recipe().model, classes)
    try:
        network.load_state_dict(load_file(choice.file))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{choice.file} does not fit the recipe and the classes beside it",
            expected=f"the weights of a model of {len(classes)} classes",
            found=" ".join(str(error).split("\n\t")[:2]),
        ) from None
    return network


def _exported(path: Path, name: str) -> LoadedModel:
    """Load an exported folder with transformers."""
    missing = [file for file in _EXPORTED if not (path / file).is_file()]
    if missing:
        weights = (file.name for file in path.glob("*") if file.suffix in _OTHER_WEIGHTS)
        others = [file for file in weights if file not in _EXPORTED]
        raise InputError(
            f"{name} is not an exported model that transformers loads",
            expected=", ".join(_EXPORTED),
            found=", ".join([f"no {file}" for file in missing] + [f"but {o}" for o in others]),
            fix="python -m imagenet_rn50 export --run RUN --out DIR --format transformers",
        )
    network = load_whole(path, name)
    processor = load_processor(path)
    return LoadedModel(
        name=name,
        network=network,
        labels=_labels_of(network),
        processor=processor,
        data=_data_of(processor),
        classes=Classes.load(path) if (path / CLASSES_FILE).is_file() else None,
        checkpoint={},
    )


def _labels_of(network: PreTrainedModel) -> tuple[str, ...]:
    """Return the class names of a model, by index."""
    names = {int(index): str(name) for index, name in (network.config.id2label or {}).items()}
    return tuple(names[index] for index in sorted(names))


def _data_of(processor: BaseImageProcessor) -> DataRecipe | None:
    """Return the settings of a processor for training's transform, or None if it has none."""
    settings = processor.to_dict()
    resize = (settings.get("size") or {}).get("shortest_edge")
    crop = settings.get("crop_size") or {}
    is_ours = (
        settings.get("resample") == Resampling.BILINEAR
        and crop.get("height") == crop.get("width") is not None
        and all(settings.get(f"do_{step}") for step in _STEPS)
    )
    if resize is None or not is_ours:
        return None
    try:
        return DataRecipe(
            eval_resize=resize,
            eval_size=crop["height"],
            mean=tuple(settings["image_mean"]),
            std=tuple(settings["image_std"]),
        )
    except ValueError:  # a crop larger than the resized image, which a processor pads
        return None


_NAMELESS = re.compile(r"LABEL_\d+|\d+")


def check_classes(model: str, labels: Sequence[str], where: str, classes: Classes) -> None:
    """Check that a model's classes are those of the data.

    Args:
        model: The model, for the message.
        labels: Its names for class indices 0, 1, ...
        where: Where the classes come from, for the message.
        classes: The classes of the data.

    Raises:
        InputError: If they differ in number, or a label contradicts the class of its index.
    """
    if len(labels) != len(classes):
        raise InputError(
            f"{model} and {where} have different numbers of classes",
            expected=f"a model of {len(classes)} classes",
            found=f"one of {len(labels)}",
        )
    if all(_NAMELESS.fullmatch(label) for label in labels):
        return
    by_wnid = all(WNID.fullmatch(label) for label in labels)
    names = [first_name(name) for name in (classes.wnids if by_wnid else classes.names)]
    if not by_wnid and all(WNID.fullmatch(name) for name in names):
        return  # shards without names: words and wnids cannot be compared
    counts = Counter(names)
    index_of = {name: i for i, name in enumerate(names) if counts[name] == 1}
    found = [index_of.get(first_name(label)) for label in labels]
    wrong = next((i for i, index in enumerate(found) if index not in {None, i}), None)
    if wrong is None and any(index is not None for index in found):
        return
    example = wrong or 0
    raise InputError(
        f"the classes of {model} are not those of {where}, or not in their order",
        expected=f"class {example} to be {classes.wnids[example]} {names[example]!r}",
        found=f"{labels[example]!r}",
        fix="evaluate it on data of its own classes, or correct id2label in its config.json",
    )


def check_wnids(one: str, classes: Classes, other: str, others: Classes) -> None:
    """Check that two lists of classes have the same wnids.

    Args:
        one: Where the first list comes from, for the message.
        classes: The first list.
        other: Where the second list comes from.
        others: The second list; names that are not wnids are not compared.

    Raises:
        InputError: If they differ.
    """
    pairs = zip(classes.wnids, others.wnids, strict=False)
    for index, (wnid, found) in enumerate(pairs):
        if wnid != found and WNID.fullmatch(wnid) and WNID.fullmatch(found):
            raise InputError(
                f"{one} and {other} list different classes",
                expected=f"class {index} to be {wnid} {classes.names[index]!r}, as in {one}",
                found=f"{found} {others.names[index]!r} in {other}",
                fix="use the list that the model and the data were made with",
            )


def first_name(label: str) -> str:
    """Return the first name of a class, without a wnid in parentheses."""
    return label.partition(",")[0].partition(" (")[0].strip()
