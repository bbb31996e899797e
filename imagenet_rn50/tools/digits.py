"""Write real images that scikit-learn contains in the layout of Kaggle's ImageNet.

scikit-learn ships 1,797 scans of handwritten digits (UCI "Optical Recognition of Handwritten
Digits", E. Alpaydin and C. Kaynak, 1998, CC BY 4.0; each already reduced to 8x8). Written as JPEGs
in the ILSVRC tree, they are packed like ImageNet.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagenet_rn50.utils.files import TEMPORARY_SUFFIX, sync_folder

NUM_VALIDATION = 360
SIDE = 48  # px of the JPEGs, six times the scan
_QUALITY = 95

# WordNet 3.0 noun synsets of the ten numbers; they sort as the digits do.
DIGITS = (
    ("n13742358", "zero, 0, nought, cipher, cypher"),
    ("n13742573", "one, 1, I, ace, single, unity"),
    ("n13743269", "two, 2, II, deuce"),
    ("n13744044", "three, 3, III, trio"),
    ("n13744304", "four, 4, IV, tetrad"),
    ("n13744521", "five, 5, V, cinque"),
    ("n13744722", "six, 6, VI, sise"),
    ("n13744916", "seven, 7, VII, heptad"),
    ("n13745086", "eight, 8, VIII, eighter"),
    ("n13745270", "nine, 9, IX, ennead"),
)


def write_ilsvrc(folder: Path) -> Path:
    """Write the digits as `folder`/ILSVRC/..., unless `folder` exists.

    The split is fixed: 360 scans, drawn class by class, are held out for validation.

    Args:
        folder: Parent of `ILSVRC/`, `LOC_val_solution.csv` and `LOC_synset_mapping.txt`, as in
            Kaggle's download.

    Returns:
        `folder`, for `shard_imagenet.py pack --source`.
    """
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write_tree(temporary)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    return folder


def _write_tree(root: Path) -> None:
    """Write images, ground truth and class names into `root`."""
    scans, digits = _load()
    held_out = _held_out(digits)
    images = root / "ILSVRC" / "Data" / "CLS-LOC"
    for wnid, _ in DIGITS:
        (images / "train" / wnid).mkdir(parents=True)
    (images / "val").mkdir()

    solution = ["ImageId,PredictionString"]
    for index, (scan, digit) in enumerate(zip(scans, digits, strict=True)):
        wnid = DIGITS[digit][0]
        image = _as_image(scan)
        if held_out[index]:
            image_id = f"ILSVRC2012_val_{len(solution):08d}"
            solution.append(f"{image_id},{wnid} 0 0 {SIDE - 1} {SIDE - 1} ")
            path = images / "val" / f"{image_id}.JPEG"
        else:
            path = images / "train" / wnid / f"{wnid}_{index}.JPEG"
        image.save(path, format="JPEG", quality=_QUALITY)

    mapping = [f"{wnid} {name}" for wnid, name in DIGITS]
    (root / "LOC_val_solution.csv").write_text("\n".join(solution) + "\n", encoding="utf-8")
    (root / "LOC_synset_mapping.txt").write_text("\n".join(mapping) + "\n", encoding="utf-8")


def _load() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the scans, (1797, 8, 8) float in [0, 16], and their digits, (1797,) int."""
    from sklearn.datasets import load_digits  # takes two seconds to import

    data = load_digits()
    return data.images, data.target


def _held_out(digits: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which scans are held out for validation; (1797,) bool, the same in every run."""
    from sklearn.model_selection import train_test_split

    _, validation = train_test_split(
        np.arange(len(digits)), test_size=NUM_VALIDATION, stratify=digits, random_state=0
    )
    mask = np.zeros(len(digits), dtype=np.bool_)
    mask[validation] = True
    return mask


def _as_image(scan: NDArray[np.float64]) -> Image.Image:
    """Convert an 8x8 scan in [0, 16] to a grayscale image of `SIDE` px."""
    gray = np.round(scan * (255 / 16)).astype(np.uint8)
    return Image.fromarray(gray).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
