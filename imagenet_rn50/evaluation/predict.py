"""Classify image files with any model that can be evaluated: what each shows, most likely first.

Images are prepared as users of a published model prepare them: decoded by Pillow, turned upright by
their EXIF, and passed through the model's own processor. `examples/predict.py` does the same with
transformers alone, for exported models.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagenet_rn50.data.image_folder import ProcessorTransform
from imagenet_rn50.evaluation.evaluate import evaluation_mode
from imagenet_rn50.evaluation.load_model import LoadedModel
from imagenet_rn50.jpeg.orientation import orientation_of, upright
from imagenet_rn50.model import logits_of
from imagenet_rn50.shards.formats import has_image_suffix, is_image, open_image, to_rgb
from imagenet_rn50.shards.sources.scan import JUNK_FOLDERS, is_junk
from imagenet_rn50.utils.errors import InputError, first_line
from imagenet_rn50.utils.formatting import first_name


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for one file.

    Attributes:
        path: The file.
        classes: Class indices, most likely first; empty if the file could not be read.
        probabilities: Their probabilities, in [0, 1].
        error: Why the file could not be read; None if it was.
    """

    path: Path
    classes: tuple[int, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


def image_files(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """List the images that some paths name.

    Args:
        paths: Files, which are taken as they are, and folders, which are searched with all below.

    Returns:
        The images, in the order of `paths` and by name within a folder; and the files in folders
        that are no images, by name and by content. What systems leave behind counts as neither.

    Raises:
        InputError: If there is no image, or a path does not exist.
    """
    images: list[Path] = []
    others: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no file or folder {path}", expected="images, or folders")
        for file in _files_below(path) if path.is_dir() else [path]:
            is_named = file is path or has_image_suffix(str(file))
            (images if is_named or is_image(file) else others).append(file)
    if not images:
        found = f"{len(others):,} other files" if others else "no files"
        raise InputError("there is nothing to predict", expected="one image or more", found=found)
    return images, others


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, by name, without what systems and tools leave behind."""
    for parent, folders, files in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not is_junk(name, JUNK_FOLDERS))
        yield from (Path(parent, name) for name in sorted(files) if not is_junk(name))


def predict(
    loaded: LoadedModel,
    files: Sequence[Path],
    *,
    top: int = 3,
    batch: int = 32,
    device: torch.device | None = None,
) -> Iterator[Prediction]:
    """Yield the prediction for each file, in their order, batch by batch.

    Args:
        loaded: The model.
        files: Image files. One that cannot be read is yielded with its error.
        top: Number of classes of each image; all if the model has fewer.
        batch: Images per forward pass.
        device: Where the model runs; by default a GPU, if there is one.

    Raises:
        InputError: If the model's logits are not finite.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = loaded.network.to(device)
    prepare = ProcessorTransform.of(loaded.processor).prepare
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(files), batch):
            chunk = files[start : start + batch]
            read = list(threads.map(lambda path: _read(path, prepare), chunk))
            images = [image for image in read if isinstance(image, Tensor)]
            rows: Iterator[tuple[tuple[int, ...], tuple[float, ...]]] = iter(())
            if images:
                with evaluation_mode(network):
                    logits = logits_of(network, torch.stack(images).to(device)).double()
                rows = _most_likely(logits, min(top, len(loaded.labels)))
            for path, image in zip(chunk, read, strict=True):
                if isinstance(image, str):
                    yield Prediction(path, error=image)
                else:
                    yield Prediction(path, *next(rows))


def _read(path: Path, prepare: Callable[[NDArray[np.uint8]], Tensor]) -> Tensor | str:
    """Return the prepared pixels of a file, or why it cannot be read."""
    try:
        with open_image(path) as image:
            pixels = upright(np.asarray(to_rgb(image)), orientation_of(image))
    except Exception as error:  # decoders raise whatever damaged files make them raise
        return getattr(error, "strerror", None) or first_line(error)
    return prepare(pixels)


def _most_likely(logits: Tensor, top: int) -> Iterator[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Yield classes and probabilities of each row of (B, C) logits, most likely first."""
    if not torch.isfinite(logits).all():
        raise InputError("the model's logits are not finite", fix="use another checkpoint")
    probabilities, classes = logits.softmax(1).topk(top)
    for named, likely in zip(classes.tolist(), probabilities.tolist(), strict=True):
        yield tuple(named), tuple(likely)


def prediction_line(prediction: Prediction, labels: Sequence[str], width: int) -> str:
    """Return one line of the table for the terminal, with the first name of each class.

    Args:
        prediction: Of a file that could be read.
        labels: Name of each class.
        width: Width of the column of paths, characters.
    """
    pairs = zip(prediction.probabilities, prediction.classes, strict=True)
    cells = [f"{probability:7.2%} {first_name(labels[label])}" for probability, label in pairs]
    widest = max(len(first_name(label)) for label in labels) + 8
    return "  ".join([f"{prediction.path!s:<{width}}", *(c.ljust(widest) for c in cells)]).rstrip()


def predictions_csv(predictions: Sequence[Prediction], labels: Sequence[str], top: int) -> str:
    """Return a line per file: its path, classes with their probabilities, and its error, if any.

    Args:
        predictions: All of them.
        labels: Name of each class.
        top: Number of classes of each line.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [f"{name}_{n}" for n in range(1, top + 1) for name in ("class", "probability")]
    writer.writerow(["path", *columns, "error"])
    for prediction in predictions:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        cells = [cell for label, likely in pairs for cell in (labels[label], f"{likely:.6f}")]
        cells += [""] * (len(columns) - len(cells))
        writer.writerow([prediction.path, *cells, prediction.error or ""])
    return buffer.getvalue()
