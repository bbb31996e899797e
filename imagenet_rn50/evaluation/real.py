"""ImageNet-ReaL: reassessed labels of ImageNet's validation images (Beyer et al. 2020).

`real.json` lists the classes that fit each image, in the order of the files' names, from
ILSVRC2012_val_00000001 on. Naming any of them is right; images with an empty list do not count.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from imagenet_rn50.errors import InputError
from imagenet_rn50.evaluation.image_sets import ImageSet
from imagenet_rn50.files import read_json

_KEY = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")


def read_real(path: Path, images: ImageSet, num_classes: int) -> list[frozenset[int]]:
    """Reads the reassessed labels of a set.

    Args:
        path: `real.json`.
        images: ImageNet's validation images, in any order.
        num_classes: How many classes the model tells apart.

    Returns:
        The classes that fit, image by image in the order of `images`; empty where none does.

    Raises:
        InputError: When the file lists other images or classes, or none that fit, or keys are not
            ImageNet's.
    """
    lists = read_json(path)
    if not _is_list_of_classes(lists, num_classes):
        raise InputError(
            f"{path} does not list reassessed labels",
            expected=f"a list of lists of class indices from 0 to {num_classes - 1}",
        )
    numbers = [_number_of(images.key_of(index)) for index in range(len(images.labels))]
    highest = max(numbers)
    # A set from which bad pictures were left out has gaps in its numbers, and fits a longer list.
    is_complete = highest == len(numbers)
    if len(lists) < highest or (is_complete and len(lists) != highest):
        raise InputError(
            f"{path} is not about these images",
            expected=f"{highest} lists, one for each image up to the last one's number",
            found=f"{len(lists)} lists",
        )
    fitting = [frozenset(lists[number - 1]) for number in numbers]
    if not any(fitting):
        raise InputError(f"{path} has only empty lists for these images")
    return fitting


def _is_list_of_classes(value: Any, num_classes: int) -> bool:
    """Says whether a value is a list of lists of class indices."""
    known = range(num_classes)
    return isinstance(value, list) and all(
        isinstance(entry, list) and all(isinstance(c, int) and c in known for c in entry)
        for entry in value
    )


def _number_of(key: str) -> int:
    """Returns the number in the name of a validation image, from 1."""
    match = _KEY.search(key)
    if match is None or int(match[1]) < 1:
        raise InputError(
            f"the image {key} is not one of ImageNet's validation images",
            expected="keys like ILSVRC2012_val_00000001, to which real.json can be matched",
        )
    return int(match[1])
