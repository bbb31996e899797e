"""Load the model from a folder or the Hub with transformers' Auto classes, and classify images."""

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

# Safetensors only: a pickle from the Hub could run code.
_FILES = [
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors*",
    "README.md",
    "examples/*",
]
NUM_PREDICTIONS = 5


class ModelError(Exception):
    """There is no usable model. The message is shown to whoever set up the Space."""


@dataclass(frozen=True)
class ModelId:
    """The model to serve.

    Attributes:
        name: A local folder or a Hub id such as `owner/name`.
        revision: Branch, tag or commit on the Hub; None for the main branch.
    """

    name: str
    revision: str | None = None

    @property
    def title(self) -> str:
        """The name shown to visitors, without the path of a local folder."""
        name = Path(self.name).resolve().name if Path(self.name).is_dir() else self.name
        return f"{name} at {self.revision}" if self.revision else name

    @classmethod
    def from_settings(cls, environment: Mapping[str, str], file: Path) -> ModelId:
        """Read MODEL_ID and MODEL_REVISION, or else the file that was uploaded with the Space.

        Raises:
            ModelError: If neither names a model.
        """
        if name := environment.get("MODEL_ID", "").strip():
            return cls(name, environment.get("MODEL_REVISION", "").strip() or None)
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
            return cls(str(settings["model_id"]), settings.get("revision"))
        except FileNotFoundError:
            raise ModelError(
                f"No model is configured: MODEL_ID is not set and there is no {file.name}."
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f'{file.name} is invalid, expected {{"model_id": "owner/name"}}.'
            ) from error


def find_folder(model: ModelId) -> Path:
    """Return the local folder of a model, downloaded from the Hub if necessary.

    Raises:
        ModelError: If it is neither a local folder nor a model that can be downloaded.
    """
    folder = Path(model.name)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(model.name, revision=model.revision, allow_patterns=_FILES))
    except Exception as error:  # network, Hub and name errors have no common class
        at = f" at revision {model.revision}" if model.revision else ""
        raise ModelError(
            f"{model.name}{at} is neither a local folder nor a model that can be downloaded from "
            "the Hub."
        ) from error


@dataclass(frozen=True)
class Prediction:
    """A class and its probability.

    Attributes:
        index: Class index.
        label: Class name.
        score: Probability, in [0, 1].
    """

    index: int
    label: str
    score: float


class Classifier:
    """An image classification model and its processor.

    Args:
        folder: Folder with config.json, model.safetensors and preprocessor_config.json.

    Raises:
        ModelError: If loading them or classifying a gray image fails.
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
            self.predict(Image.new("RGB", (256, 256), "gray"))  # warm up for the first visitor
        except Exception as error:  # a broken folder raises anything
            raise ModelError("The model cannot be loaded.") from error

    @property
    def summary(self) -> dict[str, str]:
        """Facts about the model for the About tab."""
        pixels = self.pixels(Image.new("RGB", (256, 256)))
        return {
            "architecture": type(self._model).__name__,
            "parameters": f"{self._model.num_parameters():,}",
            "classes": f"{self._model.config.num_labels:,}",
            "input": f"{pixels.shape[3]} x {pixels.shape[2]} pixels",
        }

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self._model.config.num_labels)

    def class_name(self, index: int) -> str:
        """Return the name of class `index`."""
        return str(self._model.config.id2label[index])

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Return the model input of an RGB image: (1, 3, H, W), normalized."""
        inputs = self._processor(image, return_tensors="pt")
        pixels: torch.Tensor = inputs["pixel_values"].to(self._model.dtype)
        return pixels

    @torch.inference_mode()
    def predict(self, image: Image.Image, top: int = NUM_PREDICTIONS) -> list[Prediction]:
        """Return the most likely classes of an RGB image, most likely first."""
        logits = self._model(pixel_values=self.pixels(image)).logits[0].float()
        best = logits.softmax(-1).topk(min(top, len(logits)))
        return [
            Prediction(index, self.class_name(index), score)
            for index, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def visible_crop(self, image: Image.Image) -> Image.Image:
        """Return the crop of an RGB image that the model sees, enlarged for display."""
        pixels = self.pixels(image)[0].float().numpy()
        mean, std = (
            np.reshape(getattr(self._processor, name, None) or default, (-1, 1, 1))
            for name, default in (("image_mean", 0.0), ("image_std", 1.0))
        )
        values = ((pixels * std + mean) * 255).clip(0, 255).round().astype(np.uint8)
        height, width = values.shape[1:]
        size = (SIDE, round(SIDE * height / width))
        return Image.fromarray(values.transpose(1, 2, 0)).resize(size, Image.Resampling.BICUBIC)

    def heat_map(self, image: Image.Image, index: int, size: tuple[int, int]) -> Image.Image | None:
        """Return the RGBA heat map of class `index`, or None if the model has no feature map."""
        heat = grad_cam(self._model, self.pixels(image), index)
        return None if heat is None else paint(heat, size)
