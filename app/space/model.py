"""Load models from folders or the Hub with transformers' Auto classes, and classify images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from space.calibration import FILE as CALIBRATION_FILE
from space.calibration import Calibration
from space.heatmap import SIDE, grad_cam, paint

# Safetensors only: a pickle from the Hub could run code.
_FILES = [
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors*",
    "README.md",
    "plots/*.png",
    "examples/*",
    CALIBRATION_FILE,
]
NUM_PREDICTIONS = 5
MAX_MODELS = 4  # each stays in memory


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
        name = Path(self.name).resolve().name if self.is_folder else self.name
        return f"{name} at {self.revision}" if self.revision else name

    @property
    def is_folder(self) -> bool:
        """Whether it is a local folder."""
        return Path(self.name).is_dir()


def models_from_settings(environment: Mapping[str, str], file: Path) -> list[ModelId]:
    """Read MODEL_ID and MODEL_REVISION, or else the file that was uploaded with the Space.

    Both may list several models, separated by commas.

    Raises:
        ModelError: If neither names a model, or they name too many.
    """
    if name := environment.get("MODEL_ID", "").strip():
        return _split(name, environment.get("MODEL_REVISION", ""))
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        return _split(str(settings["model_id"]), settings.get("revision") or "")
    except FileNotFoundError:
        raise ModelError(
            f"No model is configured: MODEL_ID is not set and there is no {file.name}."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f'{file.name} is invalid, expected {{"model_id": "owner/name"}}.'
        ) from error


def _split(names: str, revisions: str) -> list[ModelId]:
    """Return the models of two comma-separated lists.

    Raises:
        ModelError: If there are too many models, or not one revision each.
    """
    if ModelId(names).is_folder:
        return [ModelId(names, revisions.strip() or None)]
    listed = [name for part in names.split(",") if (name := part.strip())]
    asked = [part.strip() or None for part in revisions.split(",")]
    if asked == [None]:
        asked *= len(listed)
    if not 0 < len(listed) <= MAX_MODELS:
        raise ModelError(f"MODEL_ID lists {len(listed)} models, expected 1 to {MAX_MODELS}.")
    if len(asked) != len(listed):
        raise ModelError(
            f"MODEL_REVISION lists {len(asked)} revisions for {len(listed)} models, expected one "
            "each. A revision may be empty."
        )
    return [ModelId(name, revision) for name, revision in zip(listed, asked, strict=True)]


def titles_of(models: Sequence[ModelId]) -> list[str]:
    """Return a distinct title for each model: equal ones are numbered."""
    counts = Counter(model.title for model in models)
    seen: Counter[str] = Counter()
    titles = []
    for title in (model.title for model in models):
        seen[title] += 1
        titles.append(title if counts[title] == 1 else f"{title} ({seen[title]})")
    return titles


def find_folder(model: ModelId) -> Path:
    """Return the local folder of a model, downloaded from the Hub if necessary.

    Raises:
        ModelError: If it is neither a local folder nor a model that can be downloaded.
    """
    if model.is_folder:
        return Path(model.name)
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
        label: Class name, with all of its synonyms.
        score: Probability, in [0, 1].
        name: Class name to display: the first synonym, if no other class has it.
    """

    index: int
    label: str
    score: float
    name: str


@dataclass(frozen=True)
class Answer:
    """What a model says about an image.

    Attributes:
        predictions: The most likely classes, most likely first.
        is_unfamiliar: Whether the image is unlike those that the model saw; None if not known.
    """

    predictions: list[Prediction]
    is_unfamiliar: bool | None = None


class Classifier:
    """An image classification model and its processor.

    Args:
        folder: Folder with config.json, model.safetensors and preprocessor_config.json.
        title: Name of the model on the page; None for that of the folder.

    Attributes:
        title: Name of the model on the page.
        names: Name of each class to display; see `first_synonyms`.
        calibration: When an image counts as unlike those that the model saw; None if not known.

    Raises:
        ModelError: If loading them or classifying a gray image fails.
    """

    def __init__(self, folder: Path, title: str | None = None) -> None:
        self.title = title or folder.name
        self.calibration = Calibration.read(folder)
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
            labels = self._model.config.id2label
            self._labels = [str(labels[index]) for index in range(self.num_classes)]
            self.names = first_synonyms(self._labels)
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
    def size(self) -> str:
        """Number of parameters and bytes of the weights in memory, for the page."""
        num_bytes = self._model.get_memory_footprint()
        return f"{self._model.num_parameters():,} parameters, {num_bytes / 1e6:,.1f} MB"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self._model.config.num_labels)

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Return the model input of an RGB image: (1, 3, H, W), normalized."""
        inputs = self._processor(image, return_tensors="pt")
        pixels: torch.Tensor = inputs["pixel_values"].to(self._model.dtype)
        return pixels

    @torch.inference_mode()
    def answer(self, pixels: torch.Tensor, top: int = NUM_PREDICTIONS) -> Answer:
        """Return the most likely classes of `pixels`, and whether they are unfamiliar."""
        logits = self._model(pixel_values=pixels).logits[0].float()
        best = logits.softmax(-1).topk(min(top, len(logits)))
        predictions = [
            Prediction(index, self._labels[index], score, self.names[index])
            for index, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        unfamiliar = self.calibration.is_unfamiliar(logits) if self.calibration else None
        return Answer(predictions, unfamiliar)

    def predict(self, image: Image.Image, top: int = NUM_PREDICTIONS) -> list[Prediction]:
        """Return the most likely classes of an RGB image, most likely first."""
        return self.answer(self.pixels(image), top).predictions

    def visible_crop(self, pixels: torch.Tensor) -> Image.Image:
        """Return what the model sees of `pixels`, enlarged for display."""
        mean, std = (
            np.reshape(getattr(self._processor, name, None) or default, (-1, 1, 1))
            for name, default in (("image_mean", 0.0), ("image_std", 1.0))
        )
        values = (
            ((pixels[0].float().numpy() * std + mean) * 255).clip(0, 255).round().astype(np.uint8)
        )
        height, width = values.shape[1:]
        size = (SIDE, round(SIDE * height / width))
        return Image.fromarray(values.transpose(1, 2, 0)).resize(size, Image.Resampling.BICUBIC)

    def heat_map(
        self, pixels: torch.Tensor, index: int, size: tuple[int, int]
    ) -> Image.Image | None:
        """Return the RGBA heat map of class `index`, or None if the model has no feature map."""
        heat = grad_cam(self._model, pixels, index)
        return None if heat is None else paint(heat, size)


def first_synonyms(labels: list[str]) -> list[str]:
    """Return the first of the comma-separated names in each label, if no other label has it.

    ImageNet has "crane, bird" and "crane" for example, so some labels need all of their names.
    """
    firsts = [label.partition(",")[0].strip() for label in labels]
    counts = Counter(firsts)
    return [
        first if first and counts[first] == 1 else label
        for first, label in zip(firsts, labels, strict=True)
    ]
