"""Read pretrained weights: of torchvision, timm, an exported folder or the Hub.

No code in them is run (contract 6): they are safetensors, or pickles read with `weights_only`.
`read_pretrained` renames all parameters to torchvision's names, which timm shares; `load_weights`
loads them into transformers' model. `pretrained_config` finds their architecture and preprocessing.
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
    BATCH_COUNTER,
    CONFIG,
    PROCESSOR,
    Declared,
    declared_by_checkpoint,
    declared_by_hash,
    declared_by_name,
    declared_in,
    layers_of,
)
from imagenet_rn50.recipe import ModelRecipe
from imagenet_rn50.utils.errors import InputError, first_line
from imagenet_rn50.utils.files import read_json, sha256_of_file

Kind: TypeAlias = Literal["raw", "ema"]

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_FILES = ("*.safetensors", CONFIG, PROCESSOR)  # downloaded from the Hub
_PICKLES = {".pth", ".pt", ".bin", ".tar", ".ckpt"}
_STEMS = {  # first layer of a state dict, which shows its prefix: another layer that it must have
    "conv1.weight": "layer1.0.conv1.weight",
    "resnet.embedder.embedder.convolution.weight": (
        "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight"
    ),
}
_AVERAGED = {"ema", "swa", "avg", "average", "averaged", "shadow"}
_KIND_OF_FILE: dict[str, Kind] = {"model.safetensors": "raw", "ema.safetensors": "ema"}
_NUM_AVERAGED = "n_averaged"  # in torch.optim.swa_utils.AveragedModel
_MAX_DEPTH = 4  # of nested dicts in a training checkpoint
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SIDE = 97  # px, of the images to compare on; odd, so that rounding in layers shows
_TOLERANCE = 1e-4  # of the largest logit; kernels sum in different orders
_HEAD = ("fc.weight", "fc.bias")


@dataclass(frozen=True)
class Pretrained:
    """Pretrained weights.

    Attributes:
        name: Name of the file or Hub id, without folders.
        sha256: Hash of the file of weights.
        state: Tensors under torchvision's names, float32.
        folder: Folder of its configuration, if there is one.
        kind: Averaged (EMA) or raw weights.
        entry: Their entry in the file; empty if the file holds nothing else.
        declared: Their architecture, if declared.
    """

    name: str
    sha256: str
    state: Mapping[str, Tensor]
    folder: Path | None = None
    kind: Kind = "raw"
    entry: str = ""
    declared: Declared | None = None

    def __str__(self) -> str:
        """Return the name; for averaged weights or one of several sets, also kind and entry."""
        if not self.entry and self.kind == "raw":
            return self.name
        kind = "averaged (EMA) weights" if self.kind == "ema" else "raw weights"
        return f"{self.name}, {kind}" + (f" (its entry {self.entry})" if self.entry else "")

    @property
    def num_classes(self) -> int:
        """Number of classes of the classifier."""
        return len(self.state[_HEAD[0]])

    def labels(self) -> list[str] | None:
        """Return the class names in its configuration, or None.

        Raises:
            InputError: If it is not a configuration, or does not number the classes from 0.
        """
        if self.declared is not None and self.declared.labels is not None:
            self.declared.require("number of names", self.num_classes, len(self.declared.labels))
            return self.declared.labels
        if self.folder is None or not (self.folder / CONFIG).is_file():
            return None
        config = read_json(self.folder / CONFIG)
        labels = (config.get("id2label") or {}) if isinstance(config, dict) else None
        ids = [str(index) for index in range(self.num_classes)]
        if isinstance(labels, dict) and len(labels) != len(ids):
            return None
        if not isinstance(labels, dict) or labels.keys() != set(ids):
            raise InputError(
                f"{self.folder / CONFIG} does not name the classes",
                expected=f'"id2label": {{"0": NAME, ...}}, with ids from 0 to {len(ids) - 1}',
                fix="correct its id2label",
            )
        return [str(labels[index]) for index in ids]

    def shape(self) -> ModelRecipe:
        """Return the shape of the ResNet, from names and shapes of the tensors.

        Raises:
            InputError: If they are not those of a ResNet.
        """
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
        """Return the processor that came with the weights, or None.

        Raises:
            InputError: If it is damaged, or cannot be expressed.
        """
        if self.declared is not None and (found := self.declared.processor()) is not None:
            return found
        if self.folder is not None and (self.folder / PROCESSOR).is_file():
            return load_processor(self.folder)
        return None

    def rebuild(self) -> tuple[ResNetForImageClassification, nn.Module | None]:
        """Build transformers' model with these weights, and the same with their own library.

        Returns:
            Both, in evaluation mode; None for the second if no library declares the architecture.

        Raises:
            InputError: If their logits differ on random images.
        """
        shape, declared = self.shape(), self.declared
        if declared is not None:
            declared.require("num_classes", self.num_classes, declared.num_classes)
            for name in ModelRecipe.model_fields if declared.shape else ():
                if name != "zero_init_last_norm":
                    declared.require(name, getattr(shape, name), getattr(declared.shape, name))
        numbers = [str(index) for index in range(self.num_classes)]
        ours = build_labelled(shape, numbers, declared.variant if declared else {}).eval()
        load_weights(ours, self)
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
        weights: Averaged or raw weights, if there are both; None if there is one set.
        arch: Name of the architecture in timm, if nothing else declares one.
        option: The command-line option for `weights`, for messages.

    Raises:
        InputError: If the source is missing, damaged, holds code or no ResNet, or holds several
            sets of weights and none was chosen.
    """
    path = Path(source)
    if path.is_file():
        # A configuration beside the file belongs to it.
        folder = path.parent if (path.parent / CONFIG).is_file() else None
        return _read_file(path.name, path, folder, weights, arch, option)
    if path.is_dir():
        file = _find_file(path, weights, option)
        return _read_file(path.resolve().name, file, path, weights, arch, option)
    if not is_hub_id(source):
        raise InputError(
            f"there are no weights {source}",
            expected="a .safetensors or .pth file, an exported folder, or a Hub id: user/name",
            found="no such file or folder",
        )
    folder = download(source, _FILES)
    file = _find_file(folder, weights, option)
    return _read_file(source, file, folder, weights, arch, option)


def is_hub_id(text: str) -> bool:
    """Return whether a text is a Hub id, and not a mistyped path."""
    found = _HUB_ID.fullmatch(text)
    if found is None or text.startswith("."):
        return False
    is_file = Path(text).suffix in {".safetensors", *_PICKLES}
    return not is_file and not Path(found[1]).parent.is_dir()


def download(hub_id: str, wanted: Sequence[str]) -> Path:
    """Download files of a model on the Hub into its cache.

    Args:
        hub_id: user/name, or user/name@revision.
        wanted: Patterns of file names.

    Returns:
        The folder of the commit, named by its hash.

    Raises:
        InputError: If they cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    found = _HUB_ID.fullmatch(hub_id)
    assert found is not None
    name, revision = found.groups()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(wanted)))
    except (OSError, HFValidationError) as error:
        raise InputError(
            f"there is no folder {hub_id}, and the model cannot be downloaded from the Hub",
            found=first_line(error),
            fix="check the spelling, the network, and for a private model HF_TOKEN",
        ) from None


def load_weights(
    model: ResNetForImageClassification, pretrained: Pretrained, *, new_head: bool = False
) -> bool:
    """Load pretrained weights into a model, in place.

    Args:
        model: A model of the same shape.
        pretrained: The weights.
        new_head: If the numbers of classes differ, keep the model's initial classifier instead of
            raising an error.

    Returns:
        Whether the classifier was loaded.

    Raises:
        InputError: If the shapes differ.
    """
    own, state = model.state_dict(), dict(pretrained.state)
    num_classes = model.config.num_labels
    loads_head: bool = pretrained.num_classes == num_classes
    if not loads_head and not new_head:
        raise InputError(
            f"{pretrained.name} has another number of classes",
            expected=f"{num_classes} classes",
            found=f"{pretrained.num_classes}",
        )
    if not loads_head:
        state = {name: tensor for name, tensor in state.items() if name not in _HEAD}
    theirs = from_torchvision(state, own)
    kept = {name for name in own if name.endswith(BATCH_COUNTER)}
    if not loads_head:
        kept |= {name for name in own if name.startswith("classifier.")}
    _require_shapes(pretrained.name, own, theirs, kept)
    model.load_state_dict({**own, **theirs})
    return loads_head


def _require_shapes(
    name: str, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], kept: set[str]
) -> None:
    """Compare names and shapes; tensors in `kept` may be missing.

    Raises:
        InputError: If they differ; it names the first three.
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
            f"the weights in {name} do not fit the model",
            expected="a ResNet of the recipe's shape, of torchvision, timm or transformers",
            found=", ".join(wrong[:3]) + more,
        )


def _require_same_function(ours: nn.Module, theirs: nn.Module, declared: Declared) -> None:
    """Compare two models on random images.

    Raises:
        InputError: If their logits differ by more than rounding.
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
        f"{declared} has the parameters of transformers' ResNet, but another architecture",
        expected="the same logits on random images",
        found=f"{declared.name}{layers}; logits differ by {difference:.2g} of the largest",
        fix="use it with its own library",
    )


def _read_file(
    name: str, file: Path, folder: Path | None, weights: Kind | None, arch: str | None, option: str
) -> Pretrained:
    """Read a file of weights, and rename its tensors to torchvision's names.

    Raises:
        InputError: If it does not hold the tensors of a ResNet.
    """
    content = _load_file(file)
    entry, kind, state = _select_weights(file, content, weights, option)
    if any(key.startswith("resnet.") for key in state):
        state = to_torchvision(state)
    missing = [key for key in ("layer1.0.conv1.weight", *_HEAD) if key not in state]
    if missing:
        raise _not_a_resnet(file, f"no {missing[0]} among {len(state)} tensors")
    _require_finite(file, state)
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


def _not_a_resnet(file: Path, found: str) -> InputError:
    return InputError(
        f"{file.name} does not hold the weights of a ResNet",
        expected="parameter names of torchvision, timm or transformers",
        found=found,
    )


def _require_finite(file: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that float32 cannot represent.

    Raises:
        InputError: If a tensor is quantized, or not finite.
    """
    for key, tensor in state.items():
        if key.endswith(BATCH_COUNTER):
            continue
        if tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
            raise InputError(
                f"{file} holds tensors that are quantized or not numbers",
                expected="float16, bfloat16, float32 or float64",
                found=f"{key} of {tensor.dtype}",
            )
        if not tensor.isfinite().all():
            raise InputError(f"{file} holds weights of a run that diverged", found=f"nan in {key}")


def _load_file(weights: Path) -> Any:
    """Return the content of a file of weights, without running code in it.

    Raises:
        InputError: If it is damaged, of an unknown type, or holds code.
    """
    if weights.suffix == ".safetensors":
        try:
            return load_file(weights)
        except SafetensorError as error:
            raise InputError(f"{weights} is damaged", found=str(error)) from None
    if weights.suffix not in _PICKLES:
        raise InputError(
            f"{weights} is not a file of weights", expected=f".safetensors, {', '.join(_PICKLES)}"
        )
    try:
        # timm's and torchvision's scripts save their options in one: it holds values only.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can raise anything in torch
        raise InputError(
            f"{weights} is damaged, or cannot be read without running code",
            expected="tensors and nothing else: torch.load(..., weights_only=True)",
            found=first_line(error),
            fix="if you trust it, load it yourself and save its state_dict, best as .safetensors",
        ) from None


def _select_weights(
    file: Path, content: Any, weights: Kind | None, option: str
) -> tuple[str, Kind, dict[str, Tensor]]:
    """Select one of the sets of weights in a file.

    A set is all tensors with one prefix, found by the name of the first layer:
    `state_dict.conv1.weight`, `model_ema.module.conv1.weight`.

    Returns:
        Its entry in the file, its kind, and its tensors.

    Raises:
        InputError: If no set, or more than one, is of the wanted kind.
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
        raise _not_a_resnet(file, f"no conv1.weight among {len(flat)} entries")
    kinds: dict[str, Kind] = {prefix: _kind_of(file, prefix, flat) for prefix in prefixes}
    fitting = [prefix for prefix in prefixes if weights in {None, kinds[prefix]}]
    if len(fitting) != 1:
        found = ", ".join(
            f"{_entry_name(prefix) or file.name} ({kind})" for prefix, kind in kinds.items()
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
    state.pop(_NUM_AVERAGED, None)
    if not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(
            f"{file} holds something other than tensors",
            found=next(key for key, value in state.items() if not isinstance(value, Tensor)),
        )
    return _entry_name(prefix) if len(prefixes) > 1 else "", kinds[prefix], state


def _flattened(content: Mapping[Any, Any], depth: int = _MAX_DEPTH) -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dicts under dotted names."""
    for key, value in content.items():
        if isinstance(value, dict) and depth:
            yield from ((f"{key}.{name}", v) for name, v in _flattened(value, depth - 1))
        else:
            yield str(key), value


def _kind_of(file: Path, prefix: str, flat: Mapping[str, Any]) -> Kind:
    """Return whether a set of weights is averaged, by its name or by torch's `n_averaged`."""
    parent = ".".join(prefix.split(".")[:-2])
    is_averaged = (
        bool(_AVERAGED & set(re.split(r"[._]", prefix)))
        or f"{parent}.{_NUM_AVERAGED}".removeprefix(".") in flat
    )
    return "ema" if is_averaged else _KIND_OF_FILE.get(file.name, "raw")


def _entry_name(prefix: str) -> str:
    """Return a prefix without the names of wrappers at its end."""
    return re.sub(r"(\.module|\._orig_mod)+$", "", prefix.removesuffix("."))


def _find_file(folder: Path, weights: Kind | None, option: str) -> Path:
    """Return the file of weights in a folder; in a checkpoint, the one of the wanted kind.

    Raises:
        InputError: If there is none, or more than one.
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
