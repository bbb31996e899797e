"""Find the architecture, classes and preprocessing that belong to pretrained weights.

Layers without parameters, such as activations, strides, pooling and blur, leave no trace in a state
dict. So the architecture must be declared, and the logits of our model are compared with those of
the model that its own library builds. The first of these that exists declares it:

    --arch NAME                                     timm
    config.json with "model_type"                   transformers
    config.json with "architecture"                 timm
    "arch", or "args", of a training checkpoint     timm, torchvision's references
    the hash of the file                            a file that torchvision or timm published

No code that comes with weights is run: names are looked up in the libraries' own registries, and
timm receives arguments of its ResNet only.
"""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers import BaseImageProcessor, ResNetConfig
from transformers.activations import ACT2FN

from imagenet_rn50.model import load_processor, load_whole, processor_of
from imagenet_rn50.recipe import ModelRecipe
from imagenet_rn50.utils.errors import InputError, first_line
from imagenet_rn50.utils.files import read_json

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
ASSUMED = (
    "the ResNet v1.5 of torchvision and transformers (ReLU, stride 2 in the 3x3 convolution, "
    "3x3 max pooling, BatchNorm with eps 1e-5)"
)
_TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_CLASS = "ResNetForImageClassification"
_SHAPE = ("embedding_size", "hidden_sizes", "depths", "layer_type")
VARIANT = ("hidden_act", "downsample_in_first_stage", "downsample_in_bottleneck")
_RESAMPLING = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # PIL's numbers
_PLAIN = (("global_pool", "avg"), ("in_chans", 3))  # arguments of any ResNet
BATCH_COUNTER = "num_batches_tracked"  # missing in files older than torch 0.4.1


@dataclass(frozen=True)
class Declared:
    """A declared architecture.

    Attributes:
        name: The library and its name of the architecture.
        by: Where it is declared.
        build: Builds the model with its own library, given weights under torchvision's names; the
            model is called like those of transformers. None if no library can build it.
        variant: Fields of transformers' configuration that leave no trace in a state dict.
        shape: The shape in its configuration, if given.
        num_classes: The number of classes in its configuration, if given.
        labels: Names of the classes, by index, if given.
        processor: Returns the processor that prepares images for it, or None if unknown.
    """

    name: str
    by: str
    build: Callable[[Mapping[str, Tensor]], nn.Module] | None
    variant: Mapping[str, Any] = field(default_factory=dict)
    shape: ModelRecipe | None = None
    num_classes: int | None = None
    labels: list[str] | None = None
    processor: Callable[[], BaseImageProcessor | None] = lambda: None

    def __str__(self) -> str:
        """Return the architecture and who declares it."""
        return f"{self.name} ({self.by})"

    def require(self, what: str, found: Any, expected: Any) -> None:
        """Refuse weights that contradict what is declared.

        Raises:
            InputError: If both are known and differ.
        """
        if expected is not None and found != expected:
            raise InputError(
                f"the weights are not those of {self}",
                expected=f"{what} {expected}, as declared",
                found=f"{what} {found} in the weights",
            )


def declared_in(folder: Path) -> Declared | None:
    """Return the architecture that a folder's config.json declares, or None.

    Raises:
        InputError: If it is not a configuration, or that of another kind of model.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path} is not the configuration of a model", expected="a JSON object")
    if "architecture" in config:
        return _by_timm_config(config, path)
    return _by_transformers(config, path) if "model_type" in config else None


def declared_by_checkpoint(content: Any) -> Declared | None:
    """Return the architecture that a training script saved beside its weights, or None.

    Args:
        content: The saved object: {"arch": ..., "args": ..., "state_dict": ...}.

    Raises:
        InputError: If timm's ResNet does not accept the saved arguments.
    """
    if not isinstance(content, dict):
        return None
    args = content.get("args")
    options = vars(args) if isinstance(args, argparse.Namespace) else {}
    name = content.get("arch")
    if isinstance(name, str) and _is_of_timm(name):
        changes = dict(options.get("model_kwargs") or {})
        for option, argument in (("gp", "global_pool"), ("bn_eps", "bn_eps")):
            if options.get(option) is not None:
                changes[argument] = options[option]
        return _timm(name, changes, "its entry 'arch'", data=_timm_data(name, options))
    name = options.get("model")
    if isinstance(name, str) and name in _torchvision_names():
        return _torchvision(name, "its entry 'args'", lambda: _torchvision_data(options))
    return None


def declared_by_name(name: str) -> Declared:
    """Return an architecture of timm by its name; a tag after a dot selects its preprocessing.

    Raises:
        InputError: If timm has no such ResNet.
    """
    from timm.models import get_pretrained_cfg

    if not _is_of_timm(name):
        raise InputError(
            f"timm has no ResNet named {name!r}",
            expected="--arch with a name of timm, such as resnet50 or resnet50.a1_in1k",
            fix="list them: timm.list_models('*resnet*', pretrained=True)",
        )
    known = get_pretrained_cfg(name) if "." in name else None
    return _timm(name, {}, "--arch", data=known.to_dict() if known else None)


def declared_by_hash(sha256: str) -> Declared | None:
    """Return the architecture of a file published by torchvision or timm, or None."""
    make = _published().get(sha256[:8])
    return make() if make else None


def _by_transformers(content: dict[str, Any], path: Path) -> Declared:
    """Return what a configuration of transformers declares.

    Raises:
        InputError: If a field has no counterpart in transformers' ResNet.
    """
    _require_field(path, "model_type", content.get("model_type"), "resnet")
    classes = content.get("architectures") or [_CLASS]
    if _CLASS not in classes:
        _require_field(path, "architectures", classes, [_CLASS])
    for name in ("quantization_config", "auto_map"):
        _require_field(path, name, content.get(name), None)
    _require_field(path, "num_channels", content.get("num_channels", 3), 3)
    if (act := content.get("hidden_act", "relu")) not in ACT2FN:
        _require_field(path, "hidden_act", act, "an activation of transformers")
    try:
        config = ResNetConfig.from_dict(content)
        shape = ModelRecipe.model_validate(
            {name: getattr(config, name) for name in _SHAPE}, strict=False
        )
    except Exception as error:  # a damaged configuration can raise anything in transformers
        raise InputError(
            f"{path} is not the configuration of a ResNet", found=first_line(error)
        ) from None
    folder = path.parent
    is_loadable = any((folder / name).is_file() for name in _TRANSFORMERS_WEIGHTS)
    return Declared(
        name=f"transformers' {_CLASS}",
        by=str(path),
        build=(lambda _: load_whole(folder, str(folder))) if is_loadable else None,
        variant={name: getattr(config, name) for name in VARIANT},
        shape=shape,
        num_classes=config.num_labels,
        processor=lambda: load_processor(folder) if (folder / PROCESSOR).is_file() else None,
    )


def _by_timm_config(content: dict[str, Any], path: Path) -> Declared:
    """Return what a configuration of timm declares.

    Raises:
        InputError: If a field has no counterpart in transformers' ResNet.
    """
    name, data = content["architecture"], content.get("pretrained_cfg") or {}
    if not isinstance(name, str) or not _is_of_timm(name):
        _require_field(path, "architecture", name, "one of timm's ResNets")
    if not isinstance(data, dict) or data.get("label_offset"):
        _require_field(path, "pretrained_cfg.label_offset", data, "none")
    arguments = {"global_pool": content.get("global_pool"), **(content.get("model_args") or {})}
    names = content.get("label_names") or data.get("label_names")
    descriptions = content.get("label_descriptions") or data.get("label_descriptions") or {}
    if isinstance(names, dict):
        names = [names.get(str(index)) for index in range(len(names))]
    labels = [str(descriptions.get(label, label)) for label in names] if names else None
    return _timm(
        name,
        arguments,
        str(path),
        data=data,
        num_classes=content.get("num_classes", data.get("num_classes")),
        labels=labels,
        folder=path.parent,
    )


def _timm(
    name: str,
    arguments: Mapping[str, Any],
    by: str,
    *,
    data: Mapping[str, Any] | None,
    num_classes: int | None = None,
    labels: list[str] | None = None,
    folder: Path | None = None,
) -> Declared:
    """Return a ResNet of timm.

    Raises:
        InputError: If timm's ResNet has no such argument.
    """
    from timm.models.resnet import ResNet

    given = {
        key: value
        for key, value in arguments.items()
        if value is not None and (key, value) not in _PLAIN
    }
    given.pop("num_classes", None)
    known = inspect.signature(ResNet).parameters.keys() - {"block", "device", "dtype"}
    if unknown := sorted(given.keys() - known):
        raise InputError(
            f"timm's {name} cannot be built with the arguments in {by}",
            expected="arguments of timm's ResNet",
            found=f"{unknown[0]} {given[unknown[0]]!r}",
        )
    changes = "".join(f", {key} {value!r}" for key, value in given.items())

    def build(state: Mapping[str, Tensor]) -> nn.Module:
        from timm import create_model

        return _with_weights(
            lambda: create_model(name, num_classes=len(state["fc.bias"]), **given), state, name
        )

    def processor() -> BaseImageProcessor | None:
        if folder is not None and (folder / PROCESSOR).is_file():
            return load_processor(folder)
        return _timm_processor(data, by) if data else None

    return Declared(
        name=f"timm's {name}{changes}",
        by=by,
        build=build,
        num_classes=num_classes,
        labels=labels,
        processor=processor,
    )


def _timm_data(name: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """Return the preprocessing that timm's training script resolved from its options."""
    if not options:
        return None
    from timm.data import resolve_data_config
    from timm.models import get_pretrained_cfg

    known = get_pretrained_cfg(name)
    resolved = resolve_data_config(options, pretrained_cfg=known.to_dict() if known else None)
    return dict(resolved)


def _timm_processor(data: Mapping[str, Any], by: str) -> BaseImageProcessor:
    """Return timm's preprocessing for evaluation as a processor of transformers.

    Raises:
        InputError: If a setting cannot be expressed.
    """
    from timm.data import resolve_data_config

    try:
        config = resolve_data_config({}, pretrained_cfg=dict(data))
        channels, height, width = config["input_size"]
        size = int(height)
        resize = math.floor(size / config["crop_pct"])
        mean, std = [[float(v) for v in config[name]] for name in ("mean", "std")]
    except (AssertionError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"the preprocessing in {by} cannot be read", found=str(error)) from None
    for what, found, expected in (
        ("crop_mode", config["crop_mode"], ("center",)),
        ("interpolation", config["interpolation"], tuple(_RESAMPLING)),
        ("input_size", (channels, height, width), ((3, size, size),)),
    ):
        if found not in expected:
            raise InputError(
                f"the preprocessing in {by} cannot be expressed as transformers' processor",
                expected=f"{what} {' or '.join(map(str, expected))}",
                found=f"{what} {found}",
            )
    return processor_of(resize, size, mean, std, _RESAMPLING[config["interpolation"]])


@cache
def _torchvision_names() -> frozenset[str]:
    """Return the names of torchvision's ResNets."""
    from torchvision import models

    names = models.list_models(module=models)
    return frozenset(name for name in names if name in vars(models.resnet))


def _torchvision(
    name: str,
    by: str,
    processor: Callable[[], BaseImageProcessor | None],
    labels: list[str] | None = None,
) -> Declared:
    """Return a ResNet of torchvision."""

    def build(state: Mapping[str, Tensor]) -> nn.Module:
        from torchvision.models import get_model

        return _with_weights(
            lambda: get_model(name, weights=None, num_classes=len(state["fc.bias"])), state, name
        )

    return Declared(f"torchvision's {name}", by, build, labels=labels, processor=processor)


def _torchvision_data(options: Mapping[str, Any]) -> BaseImageProcessor | None:
    """Return the preprocessing that torchvision's training script evaluated with."""
    if not {"val_resize_size", "val_crop_size", "interpolation"} <= options.keys():
        return None
    imagenet = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # the only values of its presets
    resize, size = options["val_resize_size"], options["val_crop_size"]
    return processor_of(resize, size, *imagenet, _RESAMPLING[options["interpolation"]])


@cache
def _published() -> dict[str, Callable[[], Declared]]:
    """Return the architectures of published files, by the first digits of their sha256."""
    from timm.models import get_pretrained_cfg, list_models
    from torchvision.models import get_model_weights

    found: dict[str, Callable[[], Declared]] = {}
    for name in list_models(module="resnet", pretrained=True):
        config = get_pretrained_cfg(name)
        url = config.url if config else None
        if isinstance(url, str):
            by = f"the hash of timm's {name}"
            data = config.to_dict() if config else None
            found[_hash_in(url)] = lambda name=name, by=by, data=data: _timm(
                name, {}, by, data=data
            )  # type: ignore[misc]
    for name in _torchvision_names():
        for weights in get_model_weights(name):

            def make(name: str = name, weights: Any = weights) -> Declared:
                def processor() -> BaseImageProcessor:
                    p = weights.transforms()
                    how = _RESAMPLING[p.interpolation.value]
                    return processor_of(p.resize_size[0], p.crop_size[0], p.mean, p.std, how)

                labels = list(weights.meta["categories"])
                return _torchvision(name, f"the hash of {weights}", processor, labels)

            found[_hash_in(weights.url)] = make
    return found


def _hash_in(url: str) -> str:
    """Return the first digits of a file's sha256, which end its name."""
    return url.rpartition("-")[2].partition(".")[0]


def _is_of_timm(name: str) -> bool:
    """Return whether timm's registry has a ResNet of that name, with or without its tag.

    Any other name, such as hf-hub:user/name, would make timm fetch what it names.
    """
    from timm.models import get_deprecated_models, is_model_in_modules, is_model_pretrained

    if name in get_deprecated_models("resnet"):
        return True
    return is_model_in_modules(name, "resnet") and ("." not in name or is_model_pretrained(name))


def _with_weights(
    make: Callable[[], nn.Module], state: Mapping[str, Tensor], name: str
) -> nn.Module:
    """Build a model of another library and load weights into it.

    Raises:
        InputError: If it cannot be built, or has other parameters.
    """
    try:
        model = make()
        own = model.state_dict()
        counters = {
            key: own[key] for key in own.keys() - state.keys() if key.endswith(BATCH_COUNTER)
        }
        model.load_state_dict({**state, **counters}, strict=True)
    except Exception as error:  # wrong arguments can raise anything in a library
        first = " ".join(str(error).split("\n\t")[:2]) or type(error).__name__
        raise InputError(f"the weights are not those of {name}", found=first[:300]) from None
    return _AsTransformers(model).eval()


class _AsTransformers(nn.Module):
    """A model of another library, called like those of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.model(pixel_values))


def layers_of(model: nn.Module) -> set[str]:
    """Return the class names of a model's layers without parameters of their own."""
    return {type(layer).__name__ for layer in model.modules() if not [*layer.parameters()]}


def _require_field(path: Path, name: str, found: Any, expected: Any) -> None:
    """Refuse a field of a configuration that has no counterpart here.

    Raises:
        InputError: If it is not as expected.
    """
    if found != expected:
        raise InputError(
            f"{path} describes another model than transformers' {_CLASS}",
            expected=f"no {name}" if expected is None else f"{name} {expected!r}",
            found=f"{name} {found!r}",
        )


def normalization_of(processor: BaseImageProcessor) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation that a processor normalizes values in [0, 1] with."""
    settings = processor.to_dict()
    scale = 255 * (settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale") else 1)
    mean, std = settings.get("image_mean") or [0.0], settings.get("image_std") or [1.0]
    if not settings.get("do_normalize"):
        mean, std = [0.0], [1.0]
    means, stds = (v if isinstance(v, list | tuple) else [v] for v in (mean, std))
    return [m / scale for m in (means * 3)[:3]], [s / scale for s in (stds * 3)[:3]]
