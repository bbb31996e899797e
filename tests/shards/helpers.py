"""Small sources, made of the digits and of drawn images."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from imagenet_rn50.shards.manifest import Manifest

WNIDS = ("n01440764", "n01443537", "n02012849")


def jpeg(seed: int = 0, size: tuple[int, int] = (40, 30), mode: str = "RGB", **save) -> bytes:
    """Return a JPEG of smooth colours; `size` is (width, height)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", **{"quality": 90, **save})
    return buffer.getvalue()


def write_kaggle(root: Path, train: int = 12, validation: int = 6) -> Path:
    """Write a tree like Kaggle's, of three classes; returns `root`."""
    images = root / "ILSVRC" / "Data" / "CLS-LOC"
    for name, (wnid, content) in images_of(train).items():
        path = images / "train" / wnid / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (images / "val").mkdir(parents=True)
    rows = ["ImageId,PredictionString"]
    for name, (wnid, content) in validation_images_of(validation).items():
        (images / "val" / f"{name}.JPEG").write_bytes(content)
        rows.append(f"{name},{wnid} 0 0 39 29 1 2 3 4 ")
    (root / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    mapping = "".join(f"{wnid} thing {i}, Res {i}\n" for i, wnid in enumerate(WNIDS))
    (root / "LOC_synset_mapping.txt").write_text(mapping, encoding="utf-8")
    return root


def images_of(count: int, first: int = 0) -> dict[str, tuple[str, bytes]]:
    """Return (wnid, JPEG) by name of `count` training images of the classes in turn."""
    numbers = range(first, first + count)
    wnids = [WNIDS[number % len(WNIDS)] for number in numbers]
    return {f"{wnid}_{n}": (wnid, jpeg(n)) for n, wnid in zip(numbers, wnids, strict=True)}


def validation_images_of(count: int) -> dict[str, tuple[str, bytes]]:
    """Return (wnid, JPEG) by name of `count` validation images, in no order of classes."""
    return {
        f"ILSVRC2012_val_{n:08d}": (WNIDS[-n % len(WNIDS)], jpeg(1000 + n))
        for n in range(1, count + 1)
    }


def write_imagefolder(root: Path, train: int = 12, validation: int = 6) -> Path:
    """Write train/<wnid>/ and val/<wnid>/; returns `root`."""
    for split, images in (
        ("train", images_of(train)),
        ("val", validation_images_of(validation)),
    ):
        for name, (wnid, content) in images.items():
            path = root / split / wnid / f"{name}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def tar_of(members: dict[str, bytes]) -> bytes:
    """Return a tar as Python writes it by default."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_devkit(path: Path, ground_truth: list[str]) -> None:
    """Write a development kit: ILSVRC ids fall as wnids rise, and an ancestor comes after them."""
    from scipy.io import savemat

    names = [*reversed(WNIDS), "n00001740"]
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("gloss", object)]
    synsets = np.zeros((len(names), 1), dtype=fields)
    for number, wnid in enumerate(names, start=1):
        synsets[number - 1, 0] = (number, wnid, f"words of {wnid}", "")
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    lines = "".join(f"{names.index(wnid) + 1}\n" for wnid in ground_truth)
    members = {
        "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": lines.encode(),
    }
    path.write_bytes(gzip.compress(tar_of(members)))


def write_official(root: Path, train: int = 12, validation: int = 6) -> Path:
    """Write the two tars and the development kit; returns `root`."""
    root.mkdir(parents=True)
    by_class: dict[str, dict[str, bytes]] = {wnid: {} for wnid in WNIDS}
    for name, (wnid, content) in images_of(train).items():
        by_class[wnid][f"{name}.JPEG"] = content
    class_tars = {f"{wnid}.tar": tar_of(by_class[wnid]) for wnid in reversed(WNIDS)}
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(class_tars))
    images = validation_images_of(validation)
    members = {f"{name}.JPEG": content for name, (_, content) in images.items()}
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of(members))
    write_devkit(root / "ILSVRC2012_devkit_t12.tar.gz", [wnid for wnid, _ in images.values()])
    return root


def write_parquet(root: Path, train: int = 12, validation: int = 6) -> Path:
    """Write two training files and one validation file, as `datasets` does; returns `root`."""
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({
        "image": Image(decode=False), "label": ClassLabel(names=[f"thing {i}" for i in range(3)])
    })  # fmt: skip
    (root / "data").mkdir(parents=True)
    half = train // 2
    parts = {
        "train-00000-of-00002": images_of(half),
        "train-00001-of-00002": images_of(train - half, first=half),
        "validation-00000-of-00001": validation_images_of(validation),
    }
    for part, images in parts.items():
        rows = {
            "image": [
                {"bytes": content, "path": f"{name}_{wnid}.JPEG"}
                for name, (wnid, content) in images.items()
            ],
            "label": [WNIDS.index(wnid) for wnid, _ in images.values()],
        }
        dataset = Dataset.from_dict(rows, features=features)
        dataset.to_parquet(root / "data" / f"{part}.parquet", batch_size=4)
    return root


def members_of(tar: tarfile.TarFile) -> dict[str, bytes]:
    """Return the content of all files of a tar by name."""
    files = ((member.name, tar.extractfile(member)) for member in tar)
    return {name: file.read() for name, file in files if file is not None}


def samples_of(folder: Path, split: str) -> dict[str, tuple[int, bytes]]:
    """Return (label, JPEG) by key, read by the manifest's offsets."""
    chosen = Manifest.load(folder).split(split)
    found = {}
    for index in range(chosen.num_samples):
        shard = (folder / chosen.shards[chosen.shard_of(index)].name).read_bytes()
        begin, length = int(chosen.offsets[index]), int(chosen.lengths[index])
        found[chosen.key_of(index)] = (int(chosen.labels[index]), shard[begin : begin + length])
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


WRITERS = {
    "kaggle": write_kaggle,
    "imagefolder": write_imagefolder,
    "official": write_official,
    "parquet": write_parquet,
}
