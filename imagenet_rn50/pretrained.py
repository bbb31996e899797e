"""Weights that others trained: torchvision's, timm's, an exported folder's or the Hub's.

They are read without running anything that they hold (contract 6): safetensors, or pickles of which
torch takes tensors alone. Whatever names the parameters have, they leave here under torchvision's,
which are timm's too; `take_weights` puts them into transformers' model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import ResNetForImageClassification

from imagenet_rn50.errors import InputError
from imagenet_rn50.files import read_json, sha256_of_file
from imagenet_rn50.model import from_torchvision, to_torchvision
from imagenet_rn50.recipe import ModelRecipe

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_FILES = ("*.safetensors", "config.json", "preprocessor_config.json")  # of the Hub
_PICKLES = {".pth", ".pt", ".bin", ".tar", ".ckpt"}
_WRAPPERS = ("state_dict", "model")  # timm's and torchvision's training scripts
_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")  # of DDP, of torch.compile
_COUNTER = "num_batches_tracked"  # which files from before torch 0.4.1 lack
_HEAD = ("fc.weight", "fc.bias")


@dataclass(frozen=True)
class Pretrained:
    """Weights as they were found.

    Attributes:
        name: Name of the file or Hub id, without folders.
        sha256: Hash of the file of weights.
        state: Tensors under torchvision's names.
        folder: Where its configuration stands, if it came with one.
    """

    name: str
    sha256: str
    state: Mapping[str, Tensor]
    folder: Path | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes that the classifier tells apart."""
        return len(self.state[_HEAD[0]])

    def labels(self) -> list[str] | None:
        """Returns the names of the classes that its configuration gives, if it does.

        Raises:
            InputError: When it is no configuration, or does not count the classes from 0.
        """
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
                fix="mend it, or name the file of weights beside it; export takes --classes then",
            )
        return [str(labels[index]) for index in ids]

    def shape(self) -> ModelRecipe:
        """Returns the shape of the ResNet whose weights these are."""
        depths: list[int] = []
        while f"layer{len(depths) + 1}.0.conv1.weight" in self.state:
            stage = f"layer{len(depths) + 1}."
            depths.append(len({n.split(".")[1] for n in self.state if n.startswith(stage)}))
        is_bottleneck = "layer1.0.conv3.weight" in self.state
        last = "conv3" if is_bottleneck else "conv2"
        widths = [len(self.state[f"layer{i + 1}.0.{last}.weight"]) for i in range(len(depths))]
        return ModelRecipe(
            embedding_size=len(self.state["conv1.weight"]),
            hidden_sizes=tuple(widths),
            depths=tuple(depths),
            layer_type="bottleneck" if is_bottleneck else "basic",
        )


def read_pretrained(source: str) -> Pretrained:
    """Reads weights from a file, an exported folder or the Hub.

    Args:
        source: A .safetensors file, a .pth file of tensors, a folder with safetensors in it, or a
            Hub id, user/name or user/name@revision.

    Raises:
        InputError: When there is no such thing, it is damaged, it would have to run code, or it
            holds no ResNet.
    """
    path = Path(source)
    if path.is_file():
        return _named(path.name, path)
    if path.is_dir():
        return _named(path.resolve().name, _weights_in(path), path)
    if not is_hub_id(source):
        raise InputError(
            f"there are no weights {source}",
            expected="a .safetensors or .pth file, an exported folder, or a Hub id: user/name",
            found="no such file or folder",
        )
    folder = fetch(source, _FILES)
    return _named(source, _weights_in(folder), folder)


def is_hub_id(text: str) -> bool:
    """Says whether a text names a model of the Hub, and no file or folder that is not there.

    A mistyped path shall be called one, and not be asked of the Hub.
    """
    found = _HUB_ID.fullmatch(text)
    if found is None or text.startswith("."):
        return False
    is_file = Path(text).suffix in {".safetensors", *_PICKLES}
    return not is_file and not Path(found[1]).parent.is_dir()


def fetch(hub_id: str, wanted: Sequence[str]) -> Path:
    """Fetches files of a model on the Hub, into its cache.

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
    """Compares names and shapes; what the model may keep need not be there.

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


def _named(name: str, weights: Path, folder: Path | None = None) -> Pretrained:
    """Reads a file of weights and gives its tensors torchvision's names.

    Raises:
        InputError: When it does not hold the tensors of a ResNet.
    """
    state = _unwrapped(_tensors(weights))
    if any(key.startswith("resnet.") for key in state):
        state = to_torchvision(state)
    missing = [key for key in ("conv1.weight", "layer1.0.conv1.weight", *_HEAD) if key not in state]
    if missing:
        raise InputError(
            f"{weights.name} does not hold the weights of a ResNet",
            expected="parameters named as torchvision, timm or transformers name them",
            found=f"no {missing[0]} among {len(state)} tensors",
        )
    return Pretrained(name, sha256_of_file(weights), state, folder)


def _tensors(weights: Path) -> Any:
    """Reads what a file of weights holds; nothing in it is run.

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
        return torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile pickle makes torch raise
        raise InputError(
            f"{weights} cannot be read without running code that it may hold, or is damaged",
            expected="tensors and nothing else: torch.load(..., weights_only=True)",
            found=(str(error) or type(error).__name__).splitlines()[0],
            fix="whoever trusts it saves its state_dict alone, best as .safetensors",
        ) from None


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """Returns the state dict in what a training script saved.

    Raises:
        InputError: When there is none.
    """
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise InputError("the file of weights holds no state dict", found=type(content).__name__)
    named = {_PREFIX.sub("", str(name)): tensor for name, tensor in content.items()}
    if not all(isinstance(tensor, Tensor) for tensor in named.values()):
        raise InputError("the file of weights holds other things than tensors")
    return named


def _weights_in(folder: Path) -> Path:
    """Returns the one safetensors file in a folder.

    Raises:
        InputError: When there is none, or more than one.
    """
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise InputError(
            f"{folder} is not an exported model",
            expected="one .safetensors file",
            found=f"{len(found)}",
            fix="python -m imagenet_rn50 export --run RUN --out DIR",
        )
    return found[0]
