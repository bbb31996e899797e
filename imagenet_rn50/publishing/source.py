"""What is exported: weights of a run or of others, brought into one form."""

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
_SAY_SIZES = "say it: --eval-resize 256 --eval-size 224"


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        name: The model's name, for its card.
        described: Where it was found, for people.
        model: Float32, on the CPU.
        processor: Prepares pictures for it.
        data: Sizes and normalisation, as the processor has them.
        evidence: Files to lie beside it, for its card, by their names there.
        classes: Its classes with their wnids, to lie beside it for evaluation, where known.
        choice: Which weights of a run they are; None for weights of others.
        origin: Weights of others; None for a run's.
        reference: What the export must compute: the trained model, or weights of others in the
            model that their own library builds; None where nothing declares their architecture.
    """

    name: str
    described: str
    model: ResNetForImageClassification
    processor: BaseImageProcessor
    data: DataRecipe
    evidence: dict[str, Path]
    classes: Classes | None
    choice: SelectedWeights | None = None
    origin: Pretrained | None = None
    reference: nn.Module | None = None


def source_of_run(run: Path, which: Which, weights: Weights, metrics: Path | None) -> Source:
    """Return the chosen weights of a run.

    Args:
        run: The run folder.
        which: The checkpoint with the best validation top-1, or the newest.
        weights: Averaged, raw, or whichever scored better there.
        metrics: metrics.json of `evaluate`; None for that of the run, if any.

    Raises:
        InputError: If there is no such run, checkpoint or weights, or they do not fit it.
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
        described=str(choice.checkpoint.folder),
        model=model,
        processor=build_processor(recipe.data),
        data=recipe.data,
        evidence=files,
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
    """Return weights of others.

    Args:
        weights: As `read_pretrained` takes them.
        classes: Lists the model's classes, as `Classes.read` takes it; None for those of its
            configuration, or of ImageNet where it has a thousand.
        sizes: `eval_resize` and `eval_size`, px, where they are to be others than its
            configuration says.
        metrics: metrics.json of `evaluate`, if any.
        kind: Averaged or raw weights, where the file holds both.
        arch: Name of the architecture in timm, where nothing else declares one.

    Raises:
        InputError: If they cannot be read, belong to another architecture, or their classes or
            processor are not known.
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
            "--arch names another"
        )
    processor = _processor(pretrained, sizes)
    files = {EVALUATION: metrics} if metrics else {}
    return Source(
        name=Path(pretrained.name).stem if Path(weights).is_file() else pretrained.name,
        described=weights,
        model=model,
        processor=processor,
        data=data_of(processor),
        evidence=files,
        classes=known,
        origin=pretrained,
        reference=reference,
    )


def data_of(processor: Any) -> DataRecipe:
    """Return sizes and normalisation as a processor states them.

    Raises:
        InputError: If it does something else than resize, crop and normalise.
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
            f"the processor in {PROCESSOR} prepares pictures in a way that is not known here",
            expected="resize the shortest edge, crop the centre, normalise",
            found=f"{type(processor).__name__}: {error}",
            fix=_SAY_SIZES,
        ) from None


def _labels(pretrained: Pretrained, classes: Classes | None) -> list[str]:
    """Return one name a class.

    Raises:
        InputError: If nobody says what the classes are, or `classes` contradicts the weights.
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
    """Return what prepares pictures for a model.

    Raises:
        InputError: If its folder should say and does not.
    """
    if (found := pretrained.processor()) is not None:
        processor = _as_crop(found)
        return _resized(processor, sizes) if sizes else processor
    data = _with_sizes(DataRecipe(), sizes)
    if pretrained.folder is not None and not sizes:
        raise InputError(
            f"{pretrained.name} has no {PROCESSOR}",
            expected="a folder that says how pictures are prepared for its model",
            fix=_SAY_SIZES,
        )
    assumed = f"mean {list(data.mean)}, std {list(data.std)} and bilinear interpolation"
    if not sizes:
        assumed = (
            f"resizing to {data.eval_resize} px, the central {data.eval_size} px (--eval-resize "
            f"and --eval-size change that), {assumed}"
        )
    logger.info(f"{pretrained.name} does not state how images are prepared: assuming {assumed}")
    return build_processor(data)


def _as_crop(processor: BaseImageProcessor) -> BaseImageProcessor:
    """Return a processor that resizes and crops, where one states the same as a part to keep.

    ConvNeXT's, which microsoft/resnet-50 has, resizes to size / crop_pct below 384 px, and warps
    above.
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
    """Return a processor with all settings of another one but for sizes."""
    kept = {name: settings[name] for name in _KEPT if settings.get(name) is not None}
    changed: BaseImageProcessor = processor.from_dict(processor.to_dict() | kept)
    return changed


def _resized(processor: Any, sizes: Mapping[str, int]) -> BaseImageProcessor:
    """Return a processor with other sizes; whatever else it does stays.

    Raises:
        InputError: If it has no such sizes, and not both were given.
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
    """Return settings with changes, validated again.

    Raises:
        InputError: If they do not go together.
    """
    content = {"data": data.model_dump(mode="json") | dict(changes)}
    return parse_recipe(content, "what --eval-resize and --eval-size make").data
