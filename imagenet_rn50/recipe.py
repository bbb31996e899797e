"""The recipe: one training run's hyperparameters, typed, frozen, validated.

A recipe says nothing about the machine: ranks, workers and precision may change from one start of a
run to the next, a recipe may not. `recipes/*.yaml` state only what differs from the defaults here.

Recipe files: from YAML to a `Recipe`, with messages that name key, value, nearest valid key.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_text
from imagenet_rn50.utils.parsing import parse_yaml

_SIZE_STEP = 32  # px, the stride of the network

Positive: TypeAlias = Annotated[int, Field(gt=0)]
AboveZero: TypeAlias = Annotated[float, Field(gt=0)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0)]
Fraction: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
Beta: TypeAlias = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Section(BaseModel):
    """Settings of every part of a recipe: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelRecipe(_Section):
    """Shape of the `ResNetForImageClassification`; the defaults are ResNet-50 v1.5."""

    embedding_size: Positive = 64
    """Channels of the stem."""
    hidden_sizes: tuple[Positive, ...] = (256, 512, 1024, 2048)
    """Output channels of each stage."""
    depths: tuple[Positive, ...] = (3, 4, 6, 3)
    """Blocks of each stage."""
    layer_type: Literal["bottleneck", "basic"] = "bottleneck"
    """Kind of residual block."""
    zero_init_last_norm: bool = True
    """Start every residual branch at zero (Goyal et al. 2017, section 5.1)."""

    @model_validator(mode="after")
    def _stages_match(self) -> Self:
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError("hidden_sizes and depths must have one entry a stage, both")
        return self


class DataRecipe(_Section):
    """Preprocessing, augmentation and shuffling."""

    train_size: Positive = 224
    """Side of a training crop, px."""
    eval_size: Positive = 224
    """Side of the central crop in evaluation, px."""
    eval_resize: Positive = 256
    """Shorter side to which an image is resized before the central crop, px."""
    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Smallest and largest fraction of an image's area that a random crop takes."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width / height of a random crop."""
    final_size: Positive | None = None
    """Side of a training crop after it has grown, px; None does not grow."""
    growth: tuple[NotNegative, NotNegative] | None = None
    """First and last epoch of its growth, which goes in steps of 32 px (FFCV's rule)."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    auto_augment: Literal["randaugment", "trivialaugment"] | None = None
    """RandAugment (Cubuk et al. 2020) or TrivialAugment (Mueller and Hutter 2021); None for
    neither."""
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of RandAugment's operations, of at most 30 as torchvision counts them."""
    randaugment_probability: Fraction = 1.0
    """Probability of each of RandAugment's two operations."""
    color_jitter: Fraction = 0.0
    """Largest relative change of brightness, contrast and saturation."""
    erasing: Fraction = 0.0
    """Probability that a random box is erased (Zhong et al. 2020)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of each RGB channel, of values in [0, 1]."""
    std: tuple[AboveZero, AboveZero, AboveZero] = (0.229, 0.224, 0.225)
    """Standard deviation of each RGB channel, of values in [0, 1]."""
    shuffle_window: Positive = 32
    """How many neighbouring shards, in the epoch's order, are mixed with each other."""

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> Self:
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be a range 0 < low <= high")
        if self.eval_size > self.eval_resize:
            raise ValueError("eval_size must not be larger than eval_resize")
        if (self.final_size is None) != (self.growth is None):
            raise ValueError("final_size and growth go together")
        if self.growth is not None and self.growth[0] >= self.growth[1]:
            raise ValueError("growth must be a range first < last")
        return self

    def size_at(self, epoch: int) -> int:
        """Return the side of a training crop in an epoch, from 0; px."""
        if self.final_size is None or self.growth is None:
            return self.train_size
        first, last = self.growth
        part = min(max((epoch - first) / (last - first), 0.0), 1.0)
        if part in {0.0, 1.0}:
            return self.final_size if part else self.train_size
        size = self.train_size + part * (self.final_size - self.train_size)
        return round(size / _SIZE_STEP) * _SIZE_STEP


class OptimizerRecipe(_Section):
    """The update rule."""

    name: Literal["sgd", "adamw", "lamb"] = "sgd"
    """Update rule; `lamb` is timm's, which also clips the whole gradient to a norm of 1."""
    lr: AboveZero = 0.5
    """Peak learning rate, for the whole global batch."""
    momentum: Fraction = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's form of momentum."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the moments of AdamW and LAMB."""
    weight_decay: NotNegative = 1e-4
    """Weight decay of convolution and linear weights."""
    decay_norms_and_biases: bool = False
    """Decay norms and biases too, as recipes before 2018 did."""
    clip_norm: AboveZero | None = None
    """Largest norm of the gradient of a step; None does not clip."""


class ScheduleRecipe(_Section):
    """Learning rate over the run: up to the peak, then down."""

    name: Literal["onecycle", "cosine", "linear", "step", "constant"] = "onecycle"
    """Shape: cosine up and down, linear up and cosine down, linear up and down, linear up and down
    in steps, linear up and then level."""
    warmup_epochs: NotNegative = 5.0
    """Epochs before the peak."""
    start_factor: Fraction = 0.04
    """Learning rate at the very start, as a part of the peak."""
    end_factor: Fraction = 4e-6
    """Learning rate where the decay ends, as a part of the peak."""
    decay_until: AboveZero | None = None
    """Epoch at which the decay ends; None is the end of the run. The rate is level after it."""
    milestones: tuple[float, ...] = ()
    """Epochs at which `step` multiplies the rate."""
    gamma: Fraction = 0.1
    """What `step` multiplies the rate by, at each milestone."""
    plateau_patience: Positive | None = None
    """Evaluations without a lower validation loss before the rate is cut, after the decay has
    ended; None never cuts it."""
    plateau_factor: Fraction = 0.1
    """What a plateau multiplies the rate by."""
    plateau_threshold: NotNegative = 1e-4
    """Part of the lowest validation loss by which a loss must be lower to count."""

    @model_validator(mode="after")
    def _shape_has_what_it_needs(self) -> Self:
        if (self.name == "step") != bool(self.milestones):
            raise ValueError("milestones go with name step, and step needs them")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must be ascending")
        if self.decay_until is not None and self.decay_until <= self.warmup_epochs:
            raise ValueError("decay_until must be later than warmup_epochs")
        return self


class Recipe(_Section):
    """Hyperparameters of one training run."""

    epochs: Positive = 16
    """Times every training image is seen."""
    global_batch: Positive = 1024
    """Images in one optimizer step, over all ranks and accumulated micro batches."""
    micro_batch: Positive = 256
    """Images in one forward pass: the group that BatchNorm sees, on any number of ranks."""
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Softmax cross-entropy, or binary cross-entropy of each class (Wightman et al. 2021)."""
    bce_threshold: Fraction | None = None
    """Probability above which `bce` takes a class of a mixed image for present, as 1, and all
    others for absent, as 0; None keeps the probabilities."""
    label_smoothing: Fraction = 0.1
    """Probability mass taken from the true class and spread over all (Szegedy et al. 2016)."""
    mixup_alpha: NotNegative = 0.0
    """Beta distribution of mixup's weight (Zhang et al. 2018); 0 does not mix."""
    cutmix_alpha: NotNegative = 0.0
    """Beta distribution of CutMix's area (Yun et al. 2019); 0 does not mix. Where both are on, each
    micro batch takes one of them with equal chance."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of the exponential moving average of the weights; None keeps none."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, of the order of samples and of augmentation."""
    model: ModelRecipe = ModelRecipe()
    data: DataRecipe = DataRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch {self.global_batch} must be a multiple of "
                f"micro_batch {self.micro_batch}"
            )
        if self.bce_threshold is not None and self.loss != "bce":
            raise ValueError("bce_threshold goes with loss bce")
        return self

    def accumulation(self, world_size: int) -> int:
        """Return how many micro batches each rank adds up before a step.

        Raises:
            InputError: When the global batch cannot be shared equally.
        """
        num_micro_batches = self.global_batch // self.micro_batch
        if num_micro_batches % world_size:
            raise InputError(
                f"a global batch of {num_micro_batches} micro batches cannot be shared by "
                f"{world_size} ranks",
                expected=f"global_batch / micro_batch to be a multiple of {world_size}",
                found=f"{self.global_batch} / {self.micro_batch} = {num_micro_batches}",
                fix="use another number of processes or GPUs, or another --micro-batch",
            )
        return num_micro_batches // world_size

    def to_yaml(self) -> str:
        """Return every field, defaults included, as YAML that `load_recipe` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def flatten(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `optimizer.lr`, value for nested sections."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


RECIPES = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_file: str) -> Recipe:
    """Read a recipe by its name, or from a YAML file.

    Args:
        name_or_file: One of `recipe_names()`, or the path of a file that ends in .yaml or .yml.

    Raises:
        InputError: When there is no such recipe, or the file has an unknown key or a wrong value.
    """
    is_file = name_or_file.endswith((".yaml", ".yml"))
    path = Path(name_or_file) if is_file else RECIPES / f"{name_or_file}.yaml"
    if not path.is_file() or not (is_file or name_or_file in recipe_names()):
        names = recipe_names()
        near = difflib.get_close_matches(name_or_file, names, n=1)
        raise InputError(
            f"there is no recipe {name_or_file!r}",
            expected=f"one of {', '.join(names)}, or a .yaml file",
            fix=f"did you mean {near[0]!r}?" if near else None,
        )
    return _parse_text(read_text(path), source=str(path))


@lru_cache(maxsize=16)  # a run reads its recipe several times, and PyYAML is slow
def _parse_text(text: str, source: str) -> Recipe:
    return parse_recipe(parse_yaml(text, source), source)


def parse_recipe(content: Any, source: str) -> Recipe:
    """Validate what a YAML or JSON file held.

    Args:
        content: A mapping of field names to values; what it leaves out keeps its default.
        source: Where it came from, for messages.

    Raises:
        InputError: Naming each key that is unknown or wrong, its value, and the nearest valid key.
    """
    if not isinstance(content, dict):
        raise InputError(
            f"{source} is not a recipe", expected="keys and values", found=f"{content}"
        )
    try:
        # Through JSON, because lists become tuples there while all else stays strict.
        return Recipe.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise InputError(f"{source} is not a valid recipe: {explain(error)}") from None
    except TypeError as error:
        raise InputError(f"{source} is not a valid recipe", found=str(error)) from None


def explain(error: ValidationError) -> str:
    """Return each wrong key with its value and what is wrong with it, in one line."""
    return "; ".join(_describe(problem) for problem in error.errors(include_url=False))


def _describe(problem: Any) -> str:
    """Describe what is wrong with one key, in one line."""
    location = [str(part) for part in problem["loc"]]
    key, value = ".".join(location), problem["input"]
    if problem["type"] != "extra_forbidden":
        reason = problem["msg"].removeprefix("Value error, ")
        return f"{key} = {value!r}: {reason[0].lower()}{reason[1:]}" if key else reason
    valid = [name for name, _ in flatten(Recipe().model_dump())]
    valid += [name for name, value in Recipe() if isinstance(value, BaseModel)]
    near = max(valid, key=lambda candidate: _likeness(key, candidate))
    return f"unknown key {key} = {value!r}; the nearest valid key is {near}"


def _likeness(key: str, candidate: str) -> float:
    """Return how likely a person who wrote `key` meant `candidate`; `learning_rate` means `lr`."""
    initials = "".join(word[0] for word in key.rpartition(".")[2].split("_") if word)
    ratio = difflib.SequenceMatcher(None, key, candidate).ratio()
    return ratio + (candidate.rpartition(".")[2] == initials)
