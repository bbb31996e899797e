"""Load what to export, from a run or from pretrained weights, into one `Source`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import BaseImageProcessor, ResNetForImageClassification

from imagenet_rn50.classes import Classes
from imagenet_rn50.evaluation.load_model import check_classes, network_of
from imagenet_rn50.model import build_processor, name_classes, processor_of
from imagenet_rn50.pretrained import Kind, Pretrained, read_pretrained
from imagenet_rn50.pretrained_config import ASSUMED
from imagenet_rn50.publishing.layout import EVALUATION, METRICS, PROCESSOR, RECIPE, SHARDS
from imagenet_rn50.recipe import DataRecipe, parse_recipe
from imagenet_rn50.runs.checkpoint import SelectedWeights, Weights, Which, select_checkpoint
from imagenet_rn50.runs.run_dir import RunDir
from imagenet_rn50.shards.imagenet1k import NUM_CLASSES
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.logging import logger

_EVALUATION_OF_RUN = Path("evaluation") / EVALUATION
_PASS_SIZES = "pass --eval-resize and --eval-size, such as 256 and 224"


@dataclass(frozen=True)
class Source:
    """A model to export.

    Attributes:
        name: Name of the model in the card.
        location: Its path or Hub id, for messages.
        model: The model, float32 on the CPU.
        processor: Its processor.
        data: Sizes and normalization of the processor.
        files: Source files of the card, by their names in the export.
        classes: Its classes with wnids, for evaluation; None if unknown.
        choice: The selected weights of a run; None for pretrained weights.
        origin: The pretrained weights; None for a run.
        reference: The model whose logits the export must reproduce: the trained one, or the one
            built by the library of the pretrained weights; None if no architecture is declared.
    """

    name: str
    location: str
    model: ResNetForImageClassification
    processor: BaseImageProcessor
    data: DataRecipe
    files: dict[str, Path]
    classes: Classes | None
    choice: SelectedWeights | None = None
    origin: Pretrained | None = None
    reference: nn.Module | None = None


def source_of_run(run: Path, which: Which, weights: Weights, metrics: Path | None) -> Source:
    """Load the selected weights of a run.

    Args:
        run: The run directory.
        which: Best validation top-1, or newest checkpoint.
        weights: Averaged (EMA), raw, or whichever scored better.
        metrics: metrics.json of `evaluate`; None uses that of the run, if any.

    Raises:
        InputError: If there is no such run, checkpoint or weights, or the weights do not fit.
    """
    folder = RunDir(run)
    recipe = folder.recipe()
    choice = select_checkpoint(folder, which, weights)
    logger.info(f"exporting {choice}")
    files = {name: run / name for name in (METRICS, RECIPE, SHARDS)}
    files |= {f"plots/{path.name}": path for path in sorted((run / "plots").glob("*.png"))}
    found = metrics or run / _EVALUATION_OF_RUN
    if metrics or found.is_file():
        files[EVALUATION] = found
    model = network_of(folder, choice).eval()
    return Source(
        name=run.resolve().name,
        location=str(choice.checkpoint.folder),
        model=model,
        processor=build_processor(recipe.data),
        data=recipe.data,
        files=files,
        classes=folder.classes(),
        choice=choice,
        reference=model,
    )


def source_of_weights(
    weights: str,
    classes: Path | None,
    sizes: Mapping[str, int],
    metrics: Path | None,
    *,
    kind: Kind | None = None,
    arch: str | None = None,
) -> Source:
    """Load pretrained weights.

    Args:
        weights: See `read_pretrained`.
        classes: List of classes, see `Classes.read`; None uses those of the configuration, or
            ImageNet's for 1,000 classes.
        sizes: `eval_resize` and `eval_size`, px, to override those of the configuration.
        metrics: metrics.json of `evaluate`, if any.
        kind: Averaged or raw weights, if the file holds both.
        arch: Name of the architecture in timm, if nothing else declares one.

    Raises:
        InputError: If they cannot be read, do not fit the declared architecture, or have unknown
            classes or preprocessing.
    """
    pretrained = read_pretrained(weights, kind, arch=arch)
    known = Classes.read(classes) if classes else None
    model, reference = pretrained.rebuild()
    name_classes(model.config, _labels(pretrained, known))
    if str(pretrained) != pretrained.name:
        logger.info(f"exporting {pretrained}")
    if pretrained.declared is None:
        logger.info(
            f"{pretrained.name} does not state its architecture: assuming {ASSUMED}; "
            "pass --arch to name another"
        )
    processor = _processor(pretrained, sizes)
    files = {EVALUATION: metrics} if metrics else {}
    return Source(
        name=Path(pretrained.name).stem if Path(weights).is_file() else pretrained.name,
        location=weights,
        model=model,
        processor=processor,
        data=data_of(processor),
        files=files,
        classes=known,
        origin=pretrained,
        reference=reference,
    )


def data_of(processor: Any) -> DataRecipe:
    """Return the sizes and normalization of a processor.

    Raises:
        InputError: If it does not resize, crop and normalize.
    """
    try:
        return DataRecipe(
            eval_resize=processor.size["shortest_edge"],
            eval_size=processor.crop_size["height"],
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the processor in {PROCESSOR} does not resize, crop and normalize",
            expected="size.shortest_edge, crop_size.height, image_mean and image_std",
            found=f"{type(processor).__name__}: {error}",
            fix=_PASS_SIZES,
        ) from None


def _labels(pretrained: Pretrained, classes: Classes | None) -> list[str]:
    """Return one name per class.

    Raises:
        InputError: If the classes are unknown, or `classes` contradicts the weights.
    """
    labels = pretrained.labels()
    if classes is not None:
        if labels is not None:
            check_classes(pretrained.name, labels, "--classes", classes)
        return list(classes.labels)
    if labels is not None:
        return labels
    if pretrained.num_classes == NUM_CLASSES:
        from torchvision.models import ResNet50_Weights

        logger.info("1,000 classes without names: assuming ImageNet's, in the order of their wnids")
        return list(ResNet50_Weights.DEFAULT.meta["categories"])
    raise InputError(
        f"{pretrained.name} does not name its {pretrained.num_classes} classes",
        fix="list them: --classes classes.json",
    )


def _processor(pretrained: Pretrained, sizes: Mapping[str, int]) -> BaseImageProcessor:
    """Return the processor of pretrained weights, or the default one if they come without.

    Raises:
        InputError: If they come with a configuration that has no processor.
    """
    if (found := pretrained.processor()) is not None:
        processor = _as_crop(found)
        return _resized(processor, sizes) if sizes else processor
    data = _with_sizes(DataRecipe(), sizes)
    if pretrained.folder is not None and not sizes:
        raise InputError(
            f"{pretrained.name} has no {PROCESSOR}",
            expected="a folder with the preprocessing of its model",
            fix=_PASS_SIZES,
        )
    assumed = f"mean {list(data.mean)}, std {list(data.std)} and bilinear interpolation"
    if not sizes:
        assumed = (
            f"resizing to {data.eval_resize} px, the central {data.eval_size} px (--eval-resize "
            f"and --eval-size override that), {assumed}"
        )
    logger.info(f"{pretrained.name} does not state its preprocessing: assuming {assumed}")
    return build_processor(data)


def _as_crop(processor: BaseImageProcessor) -> BaseImageProcessor:
    """Convert a ConvNeXT processor with a size below 384 px to one that resizes and crops.

    microsoft/resnet-50 has one. It resizes to size / crop_pct and crops to size; from 384 px on, it
    warps instead.
    """
    settings = processor.to_dict()
    edge = (settings.get("size") or {}).get("shortest_edge")
    if not settings["image_processor_type"].startswith("ConvNext") or not edge or edge >= 384:
        return processor
    if settings.get("do_center_crop") or not settings.get("do_resize"):
        return processor
    resize = int(edge / (settings.get("crop_pct") or 224 / 256))
    plain = processor_of(resize, edge, [0.0] * 3, [1.0] * 3, settings["resample"])
    return _changed(plain, settings)


_KEPT = ("resample", "image_mean", "image_std", "rescale_factor", "do_rescale", "do_normalize")


def _changed(processor: BaseImageProcessor, settings: Mapping[str, Any]) -> BaseImageProcessor:
    """Return a processor with the settings of another one, except sizes."""
    kept = {name: settings[name] for name in _KEPT if settings.get(name) is not None}
    changed: BaseImageProcessor = processor.from_dict(processor.to_dict() | kept)
    return changed


def _resized(processor: Any, sizes: Mapping[str, int]) -> BaseImageProcessor:
    """Return a processor with other sizes and otherwise the same settings.

    Raises:
        InputError: If it has no such sizes and only one was given.
    """
    try:
        data = _with_sizes(data_of(processor), sizes)
    except InputError:
        if len(sizes) < 2:
            raise
        return _changed(build_processor(_with_sizes(DataRecipe(), sizes)), processor.to_dict())
    side = {"height": data.eval_size, "width": data.eval_size}
    changed: dict[str, Any] = {"size": {"shortest_edge": data.eval_resize}, "crop_size": side}
    changed |= {"do_resize": True, "do_center_crop": True}
    resized: BaseImageProcessor = processor.from_dict(processor.to_dict() | changed)
    return resized


def _with_sizes(data: DataRecipe, changes: Mapping[str, Any]) -> DataRecipe:
    """Return settings with changes, validated.

    Raises:
        InputError: If they contradict each other.
    """
    content = {"data": data.model_dump(mode="json") | dict(changes)}
    return parse_recipe(content, "--eval-resize and --eval-size").data
