"""The model: found by folder or Hub id, loaded once with transformers' Auto classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from space.heatmap import SIDE, grad_cam, paint

# Weights only as safetensors: a pickle from the Hub could run code.
_FILES = [
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors*",
    "README.md",
    "examples/*",
]
NUM_GUESSES = 5


class ModelError(Exception):
    """There is no usable model; the text says so to whoever set up the Space."""


@dataclass(frozen=True)
class ModelId:
    """Which model to serve.

    Attributes:
        name: A folder, or a Hub id such as `owner/name`.
        revision: Branch, tag or commit on the Hub; None is its main branch.
    """

    name: str
    revision: str | None = None

    @property
    def title(self) -> str:
        """What visitors see: where a folder stands is none of their business."""
        name = Path(self.name).resolve().name if Path(self.name).is_dir() else self.name
        return f"{name} at {self.revision}" if self.revision else name

    @classmethod
    def chosen(cls, environment: Mapping[str, str], file: Path) -> ModelId:
        """Reads MODEL_ID and MODEL_REVISION, or else the file that was pushed with the Space.

        Raises:
            ModelError: When neither names a model.
        """
        if name := environment.get("MODEL_ID", "").strip():
            return cls(name, environment.get("MODEL_REVISION", "").strip() or None)
        try:
            pushed = json.loads(file.read_text(encoding="utf-8"))
            return cls(str(pushed["model_id"]), pushed.get("revision"))
        except FileNotFoundError:
            raise ModelError("No model is chosen.") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{file.name} cannot be read.") from error


def find_folder(model: ModelId) -> Path:
    """Returns the model's folder, fetched from the Hub unless `model` names a folder here.

    Raises:
        ModelError: When it is neither a folder nor a model that the Hub hands out.
    """
    folder = Path(model.name)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(model.name, revision=model.revision, allow_patterns=_FILES))
    except Exception as error:  # the network, the Hub and the name can each be wrong in many ways
        at = f" at revision {model.revision}" if model.revision else ""
        raise ModelError(
            f"{model.name}{at} is neither a folder here nor a model that could be fetched from "
            "the Hub."
        ) from error


@dataclass(frozen=True)
class Guess:
    """One class and how likely it is.

    Attributes:
        index: Of the class.
        label: Its name.
        score: Its probability, in [0, 1].
    """

    index: int
    label: str
    score: float


class Classifier:
    """A model and its processor.

    Args:
        folder: config.json, model.safetensors, preprocessor_config.json.

    Raises:
        ModelError: When they cannot be loaded, or do not work on a gray picture.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._processor = AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            self._model, loading = AutoModelForImageClassification.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            if loading["missing_keys"]:
                raise ValueError(f"no weights for {sorted(loading['missing_keys'])}")
            self._model.eval()
            self.guess(Image.new("RGB", (256, 256), "gray"))  # and the first user waits no longer
        except Exception as error:  # a folder can be broken in any way
            raise ModelError("The model cannot be loaded.") from error

    @property
    def facts(self) -> dict[str, str]:
        """What can be said of the model without its card."""
        pixels = self.pixels(Image.new("RGB", (256, 256)))
        return {
            "architecture": type(self._model).__name__,
            "parameters": f"{self._model.num_parameters():,}",
            "classes": f"{self._model.config.num_labels:,}",
            "input": f"{pixels.shape[3]} x {pixels.shape[2]} pixels",
        }

    @property
    def num_classes(self) -> int:
        """How many classes it tells apart."""
        return int(self._model.config.num_labels)

    def name(self, index: int) -> str:
        """Returns the name of a class."""
        return str(self._model.config.id2label[index])

    def pixels(self, picture: Image.Image) -> torch.Tensor:
        """Returns what the model is given for an RGB picture: (1, 3, H, W), normalised."""
        inputs = self._processor(picture, return_tensors="pt")
        pixels: torch.Tensor = inputs["pixel_values"].to(self._model.dtype)
        return pixels

    @torch.inference_mode()
    def guess(self, picture: Image.Image, top: int = NUM_GUESSES) -> list[Guess]:
        """Returns the most likely classes of an RGB picture, the likeliest first."""
        logits = self._model(pixel_values=self.pixels(picture)).logits[0].float()
        best = logits.softmax(-1).topk(min(top, len(logits)))
        return [
            Guess(index, self.name(index), score)
            for index, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def seen(self, picture: Image.Image) -> Image.Image:
        """Returns what the model sees of an RGB picture: cut and resized, then enlarged again."""
        pixels = self.pixels(picture)[0].float().numpy()
        mean, std = (
            np.reshape(getattr(self._processor, name, None) or default, (-1, 1, 1))
            for name, default in (("image_mean", 0.0), ("image_std", 1.0))
        )
        values = ((pixels * std + mean) * 255).clip(0, 255).round().astype(np.uint8)
        height, width = values.shape[1:]
        size = (SIDE, round(SIDE * height / width))
        return Image.fromarray(values.transpose(1, 2, 0)).resize(size, Image.Resampling.BICUBIC)

    def heat(self, picture: Image.Image, index: int, size: tuple[int, int]) -> Image.Image | None:
        """Returns the heat map of a class over an RGB picture, as `heatmap.paint` does, or None."""
        heat = grad_cam(self._model, self.pixels(picture), index)
        return None if heat is None else paint(heat, size)
