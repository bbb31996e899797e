"""Small sources, made of the digits and of drawn pictures."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n01440764", "n01443537", "n02012849")


def jpeg(seed: int = 0, size: tuple[int, int] = (40, 30), mode: str = "RGB", **save) -> bytes:
    """Returns a JPEG of smooth colours; `size` is (width, height)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", **{"quality": 90, **save})
    return buffer.getvalue()


def write_kaggle(root: Path, train: int = 12, validation: int = 6) -> Path:
    """Writes a tree like Kaggle's, of three classes; returns `root`."""
    pictures = root / "ILSVRC" / "Data" / "CLS-LOC"
    for number in range(train):
        wnid = WNIDS[number % len(WNIDS)]
        path = pictures / "train" / wnid / f"{wnid}_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    (pictures / "val").mkdir(parents=True)
    rows = ["ImageId,PredictionString"]
    for number in range(1, validation + 1):
        name = f"ILSVRC2012_val_{number:08d}"
        (pictures / "val" / f"{name}.JPEG").write_bytes(jpeg(1000 + number))
        rows.append(f"{name},{WNIDS[-number % len(WNIDS)]} 0 0 39 29 1 2 3 4 ")
    (root / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    mapping = "".join(f"{wnid} thing {i}, Res {i}\n" for i, wnid in enumerate(WNIDS))
    (root / "LOC_synset_mapping.txt").write_text(mapping, encoding="utf-8")
    return root
