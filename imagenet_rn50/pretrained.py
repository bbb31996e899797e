"""Weights that others trained: torchvision's, timm's, an exported folder's or the Hub's.

They are read without running anything that they hold (contract 6): safetensors, or pickles of which
torch takes tensors alone. Whatever names the parameters have, they leave here under torchvision's,
which are timm's too; `take_weights` puts them into transformers' model. What else they come with,
such as their architecture, is read in `pretrained_config`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BaseImageProcessor, ResNetForImageClassification

from imagenet_rn50.model import (
    build_labelled,
    from_torchvision,
    load_processor,
    logits_of,
    to_torchvision,
)
from imagenet_rn50.pretrained_config import (
    PROCESSOR,
    Declared,
    declared_by_checkpoint,
    declared_by_hash,
    declared_by_name,
    declared_in,
    layers_of,
)
from imagenet_rn50.recipe import ModelRecipe
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_json, sha256_of_file

Kind: TypeAlias = Literal["raw", "ema"]

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_FILES = ("*.safetensors", "config.json", "preprocessor_config.json")  # of the Hub
_PICKLES = {".pth", ".pt", ".bin", ".tar", ".ckpt"}
_STEMS = {  # by the layer whose name shows where a state dict begins, one that it must have, too
    "conv1.weight": "layer1.0.conv1.weight",
    "resnet.embedder.embedder.convolution.weight": (
        "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight"
    ),
}
_AVERAGED = {"ema", "swa", "avg", "average", "averaged", "shadow"}
_KIND_OF_FILE: dict[str, Kind] = {"model.safetensors": "raw", "ema.safetensors": "ema"}
_AVERAGES = "n_averaged"  # of torch.optim.swa_utils.AveragedModel
_DEPTH = 4  # of dicts in a training checkpoint
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SIDE = 97  # px, of images to compare on; odd, to show how layers round
_TOLERANCE = 1e-4  # of the largest logit, for kernels that sum in another order
_COUNTER = "num_batches_tracked"  # which files from before torch 0.4.1 lack
_HEAD = ("fc.weight", "fc.bias")


@dataclass(frozen=True)
class Pretrained:
    """Weights as they were found.

    Attributes:
        name: Name of the file or Hub id, without folders.
        sha256: Hash of the file of weights.
        state: Tensors under torchvision's names, float32.
        folder: Where its configuration stands, if it came with one.
        kind: Whether they are averaged weights or raw ones.
        entry: Which entry of the file they are; empty where it holds nothing else.
        declared: Their architecture, where anything declares it.
    """

    name: str
    sha256: str
    state: Mapping[str, Tensor]
    folder: Path | None = None
    kind: Kind = "raw"
    entry: str = ""
    declared: Declared | None = None

    def __str__(self) -> str:
        """Return the name, and which weights of several they are."""
        averaged = "averaged (EMA) weights" if self.kind == "ema" else "raw weights"
        is_plain = not self.entry and self.kind == "raw"
        return (
            self.name
            if is_plain
            else f"{self.name}, {averaged}" + (f" (its entry {self.entry})" if self.entry else "")
        )

    @property
    def num_classes(self) -> int:
        """Number of classes that the classifier tells apart."""
        return len(self.state[_HEAD[0]])

    def labels(self) -> list[str] | None:
        """Return the names of the classes that its configuration gives, if it does.

        Raises:
            InputError: When it is no configuration, or does not count the classes from 0.
        """
        if self.declared is not None and self.declared.labels is not None:
            self.declared.require("number of names", self.num_classes, len(self.declared.labels))
            return self.declared.labels
        if self.folder is None or not (self.folder / "config.json").is_file():
            return None
        config = read_json(self.folder / "config.json")
        labels = (config.get("id2label") or {}) if isinstance(config, dict) else None
        ids = [str(index) for index in range(self.num_classes)]
        if isinstance(labels, dict) and len(labels) != len(ids):
            return None
        if not isinstance(labels, dict) or labels.keys() != set(ids):
            raise InputError(
                f"{self.folder / 'config.json'} does not say which class is which",
                expected=f'"id2label": {{"0": NAME, ...}}, with ids from 0 to {len(ids) - 1}',
                fix="correct it",
            )
        return [str(labels[index]) for index in ids]

    def shape(self) -> ModelRecipe:
        """Return the shape of the ResNet whose weights these are."""
        depths: list[int] = []
        while f"layer{len(depths) + 1}.0.conv1.weight" in self.state:
            stage = f"layer{len(depths) + 1}."
            depths.append(len({n.split(".")[1] for n in self.state if n.startswith(stage)}))
        is_bottleneck = "layer1.0.conv3.weight" in self.state
        last = "conv3" if is_bottleneck else "conv2"
        try:
            widths = [len(self.state[f"layer{i + 1}.0.{last}.weight"]) for i in range(len(depths))]
        except KeyError as error:
            raise InputError(
                f"{self.name} does not hold the weights of a ResNet", found=f"no {error}"
            ) from None
        return ModelRecipe(
            embedding_size=len(self.state["conv1.weight"]),
            hidden_sizes=tuple(widths),
            depths=tuple(depths),
            layer_type="bottleneck" if is_bottleneck else "basic",
        )

    def processor(self) -> BaseImageProcessor | None:
        """Return what prepares images for the model, where it came with that.

        Raises:
            InputError: When it is damaged, or cannot be expressed.
        """
        if self.declared is not None and (found := self.declared.processor()) is not None:
            return found
        if self.folder is not None and (self.folder / PROCESSOR).is_file():
            return load_processor(self.folder)
        return None

    def rebuild(self) -> tuple[ResNetForImageClassification, nn.Module | None]:
        """Build transformers' model with these weights, and the model as its own library builds it.

        Returns:
            Both, in evaluation mode; None for the second where nothing declares an architecture
            that a library builds.

        Raises:
            InputError: When they do not compute the same, on random images.
        """
        shape, declared = self.shape(), self.declared
        if declared is not None:
            declared.require("num_classes", self.num_classes, declared.num_classes)
            for name in ModelRecipe.model_fields if declared.shape else ():
                if name != "zero_init_last_norm":
                    declared.require(name, getattr(shape, name), getattr(declared.shape, name))
        numbers = [str(index) for index in range(self.num_classes)]
        ours = build_labelled(shape, numbers, declared.variant if declared else {}).eval()
        take_weights(ours, self)
        if declared is None or declared.build is None:
            return ours, None
        theirs = declared.build(self.state).eval()
        _require_same_function(ours, theirs, declared)
        return ours, theirs


def read_pretrained(
    source: str,
    weights: Kind | None = None,
    *,
    arch: str | None = None,
    option: str = "--weights",
) -> Pretrained:
    """Read weights from a file, an exported folder or the Hub.

    Args:
        source: A .safetensors file, a .pth file of tensors, a folder with such a file in it, or a
            Hub id, user/name or user/name@revision.
        weights: Averaged or raw weights, where there are both; None where there is but one set.
        arch: Name of the architecture in timm, where nothing else declares one.
        option: What `weights` was given as, for messages.

    Raises:
        InputError: When there is no such thing, it is damaged, it would have to run code, it holds
            no ResNet, or both averaged and raw weights and none was chosen.
    """
    path = Path(source)
    if path.is_file():
        # The configuration beside a file is its own.
        folder = path.parent if (path.parent / "config.json").is_file() else None
        return _named(path.name, path, folder, weights, arch, option)
    if path.is_dir():
        file = _weights_in(path, weights, option)
        return _named(path.resolve().name, file, path, weights, arch, option)
    if not is_hub_id(source):
        raise InputError(
            f"there are no weights {source}",
            expected="a .safetensors or .pth file, an exported folder, or a Hub id: user/name",
            found="no such file or folder",
        )
    folder = fetch(source, _FILES)
    file = _weights_in(folder, weights, option)
    return _named(source, file, folder, weights, arch, option)


def is_hub_id(text: str) -> bool:
    """Return whether a text names a model of the Hub, and no file or folder that is not there.

    A mistyped path shall be called one, and not be asked of the Hub.
    """
    found = _HUB_ID.fullmatch(text)
    if found is None or text.startswith("."):
        return False
    is_file = Path(text).suffix in {".safetensors", *_PICKLES}
    return not is_file and not Path(found[1]).parent.is_dir()


def fetch(hub_id: str, wanted: Sequence[str]) -> Path:
    """Fetch files of a model on the Hub, into its cache.

    Args:
        hub_id: user/name, or user/name@revision.
        wanted: Patterns of their names.

    Returns:
        The folder of that very commit, by whose hash it is named.

    Raises:
        InputError: When they cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    found = _HUB_ID.fullmatch(hub_id)
    assert found is not None
    name, revision = found.groups()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(wanted)))
    except (OSError, HFValidationError) as error:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        raise InputError(
            f"there is no folder {hub_id}, and the Hub does not give a model of that name",
            found=first,
            fix="check the spelling, the network, and HF_TOKEN where the model is private",
        ) from None


def take_weights(
    model: ResNetForImageClassification, pretrained: Pretrained, *, new_head: bool = False
) -> bool:
    """Puts weights into a model, in place.

    Args:
        model: Of the same shape.
        pretrained: What to put in.
        new_head: Whether a classifier of another number of classes is left as it was initialised,
            to be trained, instead of being an error.

    Returns:
        Whether the classifier was taken too.

    Raises:
        InputError: When the shapes differ.
    """
    own, state = model.state_dict(), dict(pretrained.state)
    num_classes = model.config.num_labels
    takes_head: bool = pretrained.num_classes == num_classes
    if not takes_head and not new_head:
        raise InputError(
            f"{pretrained.name} tells other classes apart",
            expected=f"{num_classes} classes",
            found=f"{pretrained.num_classes}",
        )
    if not takes_head:
        state = {name: tensor for name, tensor in state.items() if name not in _HEAD}
    theirs = from_torchvision(state, own)
    kept = {name for name in own if name.endswith(_COUNTER)}
    if not takes_head:
        kept |= {name for name in own if name.startswith("classifier.")}
    _require_shapes(pretrained.name, own, theirs, kept)
    model.load_state_dict({**own, **theirs})
    return takes_head


def _require_shapes(
    name: str, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], kept: set[str]
) -> None:
    """Compare names and shapes; what the model may keep need not be there.

    Raises:
        InputError: Naming the first differences.
    """
    wrong = [f"no {n}" for n in own if n not in theirs and n not in kept]
    wrong += [f"an unknown {n}" for n in theirs if n not in own]
    wrong += [
        f"{n} of {tuple(theirs[n].shape)} instead of {tuple(own[n].shape)}"
        for n in own
        if n in theirs and own[n].shape != theirs[n].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(
            f"the weights in {name} belong to another network",
            expected="a ResNet of the recipe's shape, as torchvision, timm or transformers have it",
            found=", ".join(wrong[:3]) + more,
        )


def _require_same_function(ours: nn.Module, theirs: nn.Module, declared: Declared) -> None:
    """Compare two models on random images.

    Raises:
        InputError: When their logits differ by more than kernels may.
    """
    images = torch.randn(2, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = logits_of(theirs, images), logits_of(ours, images)
    difference = ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()
    if difference <= _TOLERANCE:
        return
    from timm import create_model

    small = create_model("resnet18", layers=[1] * 4, channels=[8] * 4)
    plain = layers_of(small) | layers_of(ours)
    surplus = sorted(layers_of(theirs) - plain)
    layers = f" with layers that ours lacks: {', '.join(surplus)}" if surplus else ""
    raise InputError(
        f"{declared} is another architecture than transformers' ResNet, of the same parameters",
        expected="the same logits on random images",
        found=f"{declared.name}{layers}; logits differ by {difference:.2g} of the largest",
        fix="use it with its own library",
    )


def _named(
    name: str, file: Path, folder: Path | None, weights: Kind | None, arch: str | None, option: str
) -> Pretrained:
    """Read a file of weights and gives its tensors torchvision's names.

    Raises:
        InputError: When it does not hold the tensors of a ResNet.
    """
    content = _tensors(file)
    entry, kind, state = _chosen(file, content, weights, option)
    if any(key.startswith("resnet.") for key in state):
        state = to_torchvision(state)
    missing = [key for key in ("layer1.0.conv1.weight", *_HEAD) if key not in state]
    if missing:
        raise InputError(
            f"{file.name} does not hold the weights of a ResNet",
            expected="parameters named as torchvision, timm or transformers name them",
            found=f"no {missing[0]} among {len(state)} tensors",
        )
    _require_numbers(file, state)
    state = {key: t.float() if t.is_floating_point() else t for key, t in state.items()}
    sha256 = sha256_of_file(file)
    named = declared_by_name(arch) if arch else None
    stated = (declared_in(folder) if folder else None) or declared_by_checkpoint(content)
    if named is not None and stated is not None:
        raise InputError(
            f"{name} declares its architecture: {stated}", found=f"--arch {arch}", fix="omit --arch"
        )
    declared = named or stated or (declared_by_hash(sha256) if folder is None else None)
    return Pretrained(name, sha256, state, folder, kind, entry, declared)


def _require_numbers(file: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse what would lose its meaning as float32.

    Raises:
        InputError: When a tensor is quantized, or not finite.
    """
    for key, tensor in state.items():
        if key.endswith(_COUNTER):
            continue
        if tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
            raise InputError(
                f"{file} holds quantized weights, or none",
                expected="float16, bfloat16, float32 or float64",
                found=f"{key} of {tensor.dtype}",
            )
        if not tensor.isfinite().all():
            raise InputError(f"{file} holds weights of a run that diverged", found=f"nan in {key}")


def _tensors(weights: Path) -> Any:
    """Read what a file of weights holds; nothing in it is run.

    Raises:
        InputError: When it is damaged, of an unknown kind, or holds more than tensors.
    """
    if weights.suffix == ".safetensors":
        try:
            return load_file(weights)
        except SafetensorError as error:
            raise InputError(f"{weights} is damaged", found=str(error)) from None
    if weights.suffix not in _PICKLES:
        raise InputError(
            f"{weights} is no file of weights", expected=f".safetensors, {', '.join(_PICKLES)}"
        )
    try:
        # timm's and torchvision's scripts save their options: a class that holds values, no more.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile pickle makes torch raise
        raise InputError(
            f"{weights} cannot be read without running code that it may hold, or is damaged",
            expected="tensors and nothing else: torch.load(..., weights_only=True)",
            found=(str(error) or type(error).__name__).splitlines()[0],
            fix="whoever trusts it saves its state_dict alone, best as .safetensors",
        ) from None


def _chosen(
    file: Path, content: Any, weights: Kind | None, option: str
) -> tuple[str, Kind, dict[str, Tensor]]:
    """Return the chosen set of weights of all that a file holds.

    A set is what lies under the name of its first layer: `state_dict.conv1.weight`,
    `model_ema.module.conv1.weight`.

    Returns:
        Its entry in the file, whether it is averaged, and its tensors.

    Raises:
        InputError: When there is no set, not the wanted one, or more than one.
    """
    if not isinstance(content, dict) or not content:
        raise InputError(f"{file} holds no state dict", found=type(content).__name__)
    flat = dict(_flattened(content))
    prefixes = [
        key.removesuffix(stem)
        for key in flat
        for stem, block in _STEMS.items()
        if key.endswith(stem) and key.removesuffix(stem) + block in flat
    ]
    if not prefixes:
        raise InputError(
            f"{file.name} does not hold the weights of a ResNet",
            expected="parameters named as torchvision, timm or transformers name them",
            found=f"no conv1.weight among {len(flat)} entries",
        )
    kinds: dict[str, Kind] = {prefix: _kind(file, prefix, flat) for prefix in prefixes}
    fitting = [prefix for prefix in prefixes if weights in {None, kinds[prefix]}]
    if len(fitting) != 1:
        found = ", ".join(
            f"{_entry(prefix) or file.name} ({kind})" for prefix, kind in kinds.items()
        )
        choices = sorted(set(kinds.values()))
        raise InputError(
            f"{file} holds {len(prefixes)} sets of weights"
            if fitting
            else f"{file} holds no {weights} weights",
            expected="one set, or a choice between raw and averaged (EMA) weights",
            found=found,
            fix=" or ".join(f"{option} {choice}" for choice in choices)
            if len(choices) == len(prefixes)
            else "save one of them alone",
        )
    [prefix] = fitting
    others = [other for other in prefixes if len(other) > len(prefix)]
    state = {
        key.removeprefix(prefix): value
        for key, value in flat.items()
        if key.startswith(prefix) and not key.startswith(tuple(others))
    }
    state.pop(_AVERAGES, None)
    if not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(
            f"{file} holds other things than tensors",
            found=next(key for key, value in state.items() if not isinstance(value, Tensor)),
        )
    return _entry(prefix) if len(prefixes) > 1 else "", kinds[prefix], state


def _flattened(content: Mapping[Any, Any], depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dicts under dotted names."""
    for key, value in content.items():
        if isinstance(value, dict) and depth:
            yield from ((f"{key}.{name}", v) for name, v in _flattened(value, depth - 1))
        else:
            yield str(key), value


def _kind(file: Path, prefix: str, flat: Mapping[str, Any]) -> Kind:
    """Return whether a set of weights is averaged: by its name, or torch's count of averages."""
    parent = ".".join(prefix.split(".")[:-2])
    is_averaged = (
        bool(_AVERAGED & set(re.split(r"[._]", prefix)))
        or f"{parent}.{_AVERAGES}".removeprefix(".") in flat
    )
    return "ema" if is_averaged else _KIND_OF_FILE.get(file.name, "raw")


def _entry(prefix: str) -> str:
    """Return the entry of a file that a set of weights lies in, without the wrappers in it."""
    return re.sub(r"(\.module|\._orig_mod)+$", "", prefix.removesuffix("."))


def _weights_in(folder: Path, weights: Kind | None, option: str) -> Path:
    """Return the one file of weights in a folder, or of a checkpoint the one that is chosen.

    Raises:
        InputError: When there is none, or more than one.
    """
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    names = [path.name for path in found]
    if sorted(_KIND_OF_FILE) == names:
        if weights is None:
            raise InputError(
                f"{folder} holds 2 sets of weights",
                expected="a choice between raw and averaged (EMA) weights",
                found=", ".join(f"{name} ({kind})" for name, kind in _KIND_OF_FILE.items()),
                fix=f"{option} raw or {option} ema",
            )
        return folder / next(name for name, kind in _KIND_OF_FILE.items() if kind == weights)
    if len(found) != 1:
        is_sharded = any(folder.glob("*.index.json"))
        raise InputError(
            f"{folder} is not an exported model",
            expected="one .safetensors file, or pytorch_model.bin",
            found=", ".join(names) or "none",
            fix="save the weights as one file: save_pretrained(..., max_shard_size='50GB')"
            if is_sharded
            else "python -m imagenet_rn50 export --run RUN --out DIR",
        )
    return found[0]
