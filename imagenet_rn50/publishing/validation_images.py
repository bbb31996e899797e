"""Validation images for an export: to calibrate on, and examples for the Space.

Only images that the model was not trained on: those of the validation split of the run's own
shards. Pretrained weights have no run, so any shards with a validation split are accepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_rn50.classes import Classes
from imagenet_rn50.data.reader import ShardReader
from imagenet_rn50.publishing.layout import CALIBRATION, EXAMPLES, EXAMPLES_SOURCE
from imagenet_rn50.publishing.source_files import FieldRef, SourceFiles
from imagenet_rn50.shards.holdout import key_ranks
from imagenet_rn50.shards.manifest import VALIDATION, Manifest, Split
from imagenet_rn50.shards.store import ShardStore
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_json


@dataclass(frozen=True)
class ValidationImages:
    """The validation split of some shards.

    Args:
        store: The shards.
        manifest: Their manifest.
        split: The split.
        classes: The classes.
        fingerprint: Fingerprint of the shards.
    """

    store: ShardStore
    manifest: Manifest
    split: Split
    classes: Classes
    fingerprint: str

    @classmethod
    def of(cls, store: ShardStore | None, trained_on: Path | None) -> ValidationImages:
        """Return the validation images of shards.

        Args:
            store: The shards, if any.
            trained_on: shards.json of the run that the model comes from, if any.

        Raises:
            InputError: If there are no shards, or they are not those of the run, so that their
                validation images may be training images of the run.
        """
        if store is None:
            raise InputError(
                "no shards were given to take validation images from", fix="pass --shards SHARDS"
            )
        fingerprint = Manifest.fingerprint_of(store.folder)
        if trained_on is not None:
            expected = read_json(trained_on).get("fingerprint")
            if fingerprint != expected:
                raise InputError(
                    f"{store.folder} are not the shards of the run, so their validation images "
                    "may be training images of the run",
                    expected=f"fingerprint {expected}",
                    found=f"fingerprint {fingerprint}",
                    fix="pass the shards of the run as --shards",
                )
        manifest = Manifest.load(store.folder)
        split = manifest.split(VALIDATION)
        return cls(store, manifest, split, Classes.load(store.folder), fingerprint)

    @property
    def source(self) -> dict[str, Any]:
        """Name, split and fingerprint of the shards, for files of the export."""
        return {
            "dataset": self.manifest.dataset,
            "split": VALIDATION,
            "fingerprint": self.fingerprint,
        }

    def choose(self, number: int, purpose: str) -> NDArray[np.int64]:
        """Choose images spread evenly over the classes; the same ones each time.

        Args:
            number: Number of images; at most as many as there are.
            purpose: Images of different purposes are chosen independently of each other.

        Returns:
            Sample indices, by class; (number,) int64.
        """
        ranks = key_ranks((bytes(key) for key in self.split.keys), 0, purpose)
        by_class = np.lexsort((ranks, self.split.labels))
        _, starts, counts = np.unique(
            self.split.labels[by_class], return_index=True, return_counts=True
        )
        taken = _spread(number, counts)
        chosen = [by_class[start : start + n] for start, n in zip(starts, taken, strict=True)]
        return np.concatenate(chosen).astype(np.int64)

    def read(self, indices: NDArray[np.int64]) -> Iterator[bytes]:
        """Yield the JPEGs of some samples.

        Raises:
            SampleError: If one is damaged.
        """
        with ShardReader(self.store, self.split) as reader:
            for index in indices.tolist():
                yield reader.read(index)


def _spread(number: int, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many images each class gives: equally many, as far as it has them.

    Args:
        number: Number of images.
        counts: Number of images of each class; (num_classes,) int64.

    Returns:
        (num_classes,) int64, with the sum `number` or that of `counts`.
    """
    taken = np.zeros_like(counts)
    while (left := number - int(taken.sum())) > 0:
        (open_classes,) = np.nonzero(taken < counts)
        if len(open_classes) == 0:
            break
        if left < len(open_classes):
            positions = np.linspace(0, len(open_classes) - 1, left).round().astype(np.int64)
            open_classes = open_classes[positions]
        taken[open_classes] += 1
    return taken


def validation_images_note(files: SourceFiles) -> str:
    """Return what the card says about calibration and examples; "" if there are none."""
    text = ""
    if files.has(CALIBRATION):
        rate = files.cite(FieldRef(CALIBRATION, "false_alarm_rate"), ".1%")
        count = files.cite(FieldRef(CALIBRATION, "num_images"), ",")
        text += (
            "\n\nThe Space marks images that are unlike what the model saw, and misses some.\n"
            f"It also marks {rate} of the {count} validation images that the threshold was chosen "
            f"on (`{CALIBRATION}`)."
        )
    if files.has(EXAMPLES_SOURCE):
        dataset = files.cite(FieldRef(EXAMPLES_SOURCE, "dataset"))
        text += (
            f"\n\nThe images in `{EXAMPLES}/` are from the validation split of {dataset} "
            f"(`{EXAMPLES_SOURCE}`)."
        )
    return text
