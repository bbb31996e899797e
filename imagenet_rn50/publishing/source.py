"""What is exported: weights of a run or of others, brought into one form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoImageProcessor, BaseImageProcessor, ResNetForImageClassification

from imagenet_rn50.classes import FILE_NAME as CLASSES
from imagenet_rn50.classes import Classes
from imagenet_rn50.console import say
from imagenet_rn50.errors import InputError
from imagenet_rn50.model import build_labelled, build_model, build_processor
from imagenet_rn50.pretrained import Pretrained, read_pretrained, take_weights
from imagenet_rn50.publishing.layout import EVALUATION, METRICS, PROCESSOR, RECIPE, SHARDS
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.runs.choice import Choice, Weights, Which, choose
from imagenet_rn50.runs.folder import RunFolder

_EVALUATION_OF_RUN = Path("evaluation") / EVALUATION
_NUM_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        name: The model's name, for its card.
        described: Where it was found, for people.
        model: Float32, on the CPU.
        processor: Prepares pictures for it.
        data: Sizes and normalisation, as the processor has them.
        evidence: Files to lie beside it, for its card and for evaluation, by their names there.
        choice: Which weights of a run they are; None for weights of others.
        origin: Weights of others; None for a run's.
    """

    name: str
    described: str
    model: ResNetForImageClassification
    processor: BaseImageProcessor
    data: DataRecipe
    evidence: dict[str, Path]
    choice: Choice | None = None
    origin: Pretrained | None = None


def source_of_run(run: Path, which: Which, weights: Weights, metrics: Path | None) -> Source:
    """Returns the chosen weights of a run.

    Args:
        run: The run folder.
        which: The checkpoint with the best validation top-1, or the newest.
        weights: Averaged, raw, or whichever scored better there.
        metrics: metrics.json of `evaluate`; None for that of the run, if any.

    Raises:
        InputError: When there is no such run, checkpoint or weights, or they do not fit it.
    """
    folder = RunFolder(run)
    recipe, classes = folder.recipe(), folder.classes()
    choice = choose(folder, which, weights)
    say(f"exporting {choice}")
    files = {name: run / name for name in (METRICS, RECIPE, SHARDS)}
    files[CLASSES] = run / CLASSES
    files |= {f"plots/{path.name}": path for path in sorted((run / "plots").glob("*.png"))}
    found = metrics or run / _EVALUATION_OF_RUN
    if metrics or found.is_file():
        files[EVALUATION] = found
    model = build_model(recipe.model, classes)
    _load(model, choice, classes)
    return Source(
        name=run.resolve().name,
        described=str(choice.checkpoint.folder),
        model=model.eval(),
        processor=build_processor(recipe.data),
        data=recipe.data,
        evidence=files,
        choice=choice,
    )


def source_of_weights(
    weights: str, classes: Path | None, data: DataRecipe | None, metrics: Path | None
) -> Source:
    """Returns weights of others.

    Args:
        weights: As `read_pretrained` takes them.
        classes: Folder with the classes.json of the model's classes; None for those of its
            configuration, or of ImageNet where it has a thousand.
        data: How pictures are prepared; None for how its configuration says.
        metrics: metrics.json of `evaluate`, if any.

    Raises:
        InputError: When they cannot be read, or their classes or processor are not known.
    """
    pretrained = read_pretrained(weights)
    model = build_labelled(pretrained.shape(), _labels(pretrained, classes))
    take_weights(model, pretrained)
    processor = _processor(pretrained, data)
    files = {EVALUATION: metrics} if metrics else {}
    if classes:
        files[CLASSES] = classes / CLASSES
    return Source(
        name=pretrained.name if pretrained.folder else Path(pretrained.name).stem,
        described=weights,
        model=model.eval(),
        processor=processor,
        data=data or data_of(processor),
        evidence=files,
        origin=pretrained,
    )


def data_of(processor: Any) -> DataRecipe:
    """Returns sizes and normalisation as a processor states them.

    Raises:
        InputError: When it does something else than resize, crop and normalise.
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
        ) from None


def _load(model: ResNetForImageClassification, choice: Choice, classes: Classes) -> None:
    """Puts a checkpoint's weights into a model.

    Raises:
        InputError: When they are damaged, or belong to another network.
    """
    try:
        model.load_state_dict(load_file(choice.file))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{choice.file} does not fit the recipe and the classes beside it",
            expected=f"the weights of a model of {len(classes)} classes",
            found=" ".join(str(error).split("\n\t")[:2]),
        ) from None


def _labels(pretrained: Pretrained, classes: Path | None) -> list[str]:
    """Returns one name a class.

    Raises:
        InputError: When nobody says what the classes are.
    """
    if classes is not None:
        return list(Classes.load(classes).labels)
    if (labels := pretrained.labels()) is not None:
        return labels
    if pretrained.num_classes == _NUM_IMAGENET_CLASSES:
        from torchvision.models._meta import _IMAGENET_CATEGORIES

        say("a thousand classes without names: taken as ImageNet's, in the order of their wnids")
        return list(_IMAGENET_CATEGORIES)
    raise InputError(
        f"{pretrained.name} does not name its {pretrained.num_classes} classes",
        fix="name a folder with their classes.json: --classes FOLDER",
    )


def _processor(pretrained: Pretrained, data: DataRecipe | None) -> BaseImageProcessor:
    """Returns what prepares pictures for a model.

    Raises:
        InputError: When its folder should say and does not.
    """
    if data is not None:
        return build_processor(data)
    if pretrained.folder is None:
        data = DataRecipe()
        say(
            f"a file of weights says nothing of pictures: resized to {data.eval_resize} px, the "
            f"central {data.eval_size} px; --eval-resize and --eval-size change that"
        )
        return build_processor(data)
    if not (pretrained.folder / PROCESSOR).is_file():
        raise InputError(
            f"{pretrained.name} has no {PROCESSOR}",
            expected="a folder that says how pictures are prepared for its model",
            fix="say it: --eval-resize 256 --eval-size 224",
        )
    processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(pretrained.folder)
    return processor
