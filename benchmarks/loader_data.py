"""The same photos for every loader: ImageNet-sized JPEGs, and each loader's own format of them.

    python -m benchmarks.loader_data photos DATA       first, with the project's own environment
    python -m benchmarks.loader_data FORMAT DATA       with the environment of that format's library

The photos are random crops of four images that ship with scikit-learn, matplotlib and gradio,
scaled to the usual sizes of ImageNet and encoded at its usual qualities and subsamplings.
"""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NUM_CLASSES = 20
_SOURCES = (
    ("gradio", "media_assets/images/tower.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
_SIZES = ((500, 375), (375, 500), (500, 333), (640, 480))  # width, height, px
_SIZE_SHARES = (0.55, 0.2, 0.15, 0.1)
_SHARD_SAMPLES = 160
_RESIZED = 500  # px, longer side, of the resized variants


def write_photos(data: Path, count: int) -> None:
    """Write `count` photos as DATA/folder/<class>/<number>.jpg."""
    images = [_open(package, path) for package, path in _SOURCES]
    rng = np.random.default_rng(0)
    sizes = []
    for number in range(count):
        content = _photo(images[number % len(images)], rng)
        target = data / "folder" / f"{number % NUM_CLASSES:03d}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        sizes.append(len(content))
    print(f"{count} photos, mean {np.mean(sizes) / 1000:.1f} kB")


def _open(package: str, path: str) -> Image.Image:
    """Open an image that ships with a package, without importing the package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Image.open(Path(spec.origin).parent / path).convert("RGB")


def _photo(source: Image.Image, rng: np.random.Generator) -> bytes:
    """Return one JPEG: a random crop, perhaps mirrored, gray in 1% of cases, progressive in 1%."""
    width, height = _SIZES[rng.choice(len(_SIZES), p=_SIZE_SHARES)]
    part = rng.uniform(0.7, 1.0) * min(source.width / width, source.height / height)
    left = rng.uniform(0, source.width - part * width)
    top = rng.uniform(0, source.height - part * height)
    box = (left, top, left + part * width, top + part * height)
    photo = source.resize((width, height), Image.Resampling.BICUBIC, box=box)
    if rng.random() < 0.5:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    options: dict[str, Any] = {"quality": int(rng.integers(94, 99))}
    if rng.random() < 0.01:
        photo = photo.convert("L")
    else:
        options["subsampling"] = "4:4:4" if rng.random() < 0.36 else "4:2:0"
    buffer = io.BytesIO()
    photo.save(buffer, format="JPEG", progressive=bool(rng.random() < 0.01), **options)
    return buffer.getvalue()


def photos_of(data: Path) -> list[tuple[Path, int]]:
    """Return path and class of every photo, in a fixed random order, as packing would have it."""
    paths = sorted((data / "folder").glob("*/*.jpg"))
    shuffled = np.random.default_rng(1).permutation(len(paths))
    return [(paths[k], int(paths[k].parent.name)) for k in shuffled]


def _resized(content: bytes) -> Image.Image:
    """Return a photo of at most 500 px."""
    photo = Image.open(io.BytesIO(content)).convert("RGB")
    scale = _RESIZED / max(photo.size)
    if scale < 1:
        size = (round(photo.width * scale), round(photo.height * scale))
        photo = photo.resize(size, Image.Resampling.LANCZOS)
    return photo


def with_restarts(content: bytes) -> bytes:
    """Return a photo as we pack it: restart markers without loss, and the table of offsets."""
    from imagenet_rn50.jpeg.crop import suggested_interval, with_offset_table
    from imagenet_rn50.jpeg.header import read_header

    header = read_header(content, strict=True)
    options = []
    if header.mcu is not None:
        interval = suggested_interval(header.grid[1], header.mcu[1])
        options = ["-restart", f"{interval}B"]
    command = ["jpegtran", "-copy", "none", "-optimize", *options]
    content = subprocess.run(command, input=content, capture_output=True, check=True).stdout
    return with_offset_table(content)


def resized_with_restarts(content: bytes) -> bytes:
    """Return a photo resized to at most 500 px at quality 90, with restart markers and table."""
    buffer = io.BytesIO()
    _resized(content).save(buffer, format="JPEG", quality=90)
    return with_restarts(buffer.getvalue())


def write_shards(data: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Write WebDataset shards with our manifest, as DATA/<name>/."""
    from imagenet_rn50.shards.manifest import TRAIN, Manifest, Shard, Split
    from imagenet_rn50.utils.files import sha256_of_file

    folder = data / name
    folder.mkdir()
    photos = photos_of(data)
    shards: list[Shard] = []
    offsets, lengths, crc32s = [], [], []
    for first in range(0, len(photos), _SHARD_SAMPLES):
        path = folder / f"photos-train-{len(shards):04d}.tar"
        part = photos[first : first + _SHARD_SAMPLES]
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, (photo, label) in enumerate(part, start=first):
                jpeg = change(photo.read_bytes())
                for extension, content in (("jpg", jpeg), ("cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{number:08d}.{extension}")
                    info.size = len(content)
                    if extension == "jpg":
                        offsets.append(tar.offset + tarfile.BLOCKSIZE)
                        lengths.append(info.size)
                        crc32s.append(zlib.crc32(content))
                    tar.addfile(info, io.BytesIO(content))
        shards.append(Shard(path.name, len(part), path.stat().st_size, sha256_of_file(path)))
    split = Split(
        shards=tuple(shards),
        offsets=np.array(offsets, np.int64),
        lengths=np.array(lengths, np.int32),
        labels=np.array([label for _, label in photos], np.int32),
        keys=np.array([b"%08d" % k for k in range(len(photos))], "S8"),
        crc32s=np.array(crc32s, np.uint32),
    )
    Manifest("photos", {}, {TRAIN: split}).save(folder)
    print(f"{name}: mean {np.mean(lengths) / 1000:.1f} kB")


def write_mds(data: Path) -> None:
    """Write mosaicml-streaming's shards."""
    from streaming import MDSWriter

    columns = {"jpg": "bytes", "cls": "int"}
    with MDSWriter(out=str(data / "mds"), columns=columns, size_limit=1 << 24) as writer:
        for path, label in photos_of(data):
            writer.write({"jpg": path.read_bytes(), "cls": label})


def _litdata_sample(photo: tuple[str, int]) -> dict[str, Any]:
    """Return one sample for litdata."""
    return {"jpg": Path(photo[0]).read_bytes(), "cls": photo[1]}


def write_litdata(data: Path) -> None:
    """Write litdata's chunks."""
    import litdata

    litdata.optimize(
        fn=_litdata_sample,
        inputs=[(str(path), label) for path, label in photos_of(data)],
        output_dir=str(data / "litdata"),
        chunk_bytes="16MB",
        num_workers=1,
    )


class _Photos:
    """Photos for FFCV's writer, which wants something that can be indexed."""

    def __init__(self, data: Path) -> None:
        self._photos = photos_of(data)

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self._photos[index]
        return Image.open(path).convert("RGB"), label


def write_ffcv(data: Path, resolution: int | None) -> None:
    """Write FFCV's file of JPEGs: as large as they are, or of at most `resolution` px."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    name = "ffcv.beton" if resolution is None else f"ffcv{resolution}.beton"
    image = RGBImageField(write_mode="jpg", max_resolution=resolution, jpeg_quality=90)
    writer = DatasetWriter(str(data / name), {"image": image, "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(_Photos(data))


def main() -> None:
    """Write what the command line names."""
    kind, data = sys.argv[1], Path(sys.argv[2])
    formats: dict[str, Callable[[], None]] = {
        "photos": lambda: write_photos(data, int(sys.argv[3])),
        "shards": lambda: write_shards(data, "shards", lambda content: content),
        "restarts": lambda: write_shards(data, "restarts", with_restarts),
        "restarts500": lambda: write_shards(data, "restarts500", resized_with_restarts),
        "mds": lambda: write_mds(data),
        "litdata": lambda: write_litdata(data),
        "ffcv": lambda: write_ffcv(data, None),
        "ffcv500": lambda: write_ffcv(data, _RESIZED),
    }
    done = data / f"{kind}.done"
    if done.exists():
        return
    for name in (kind, f"{kind}.beton"):
        if (data / name).is_dir():
            shutil.rmtree(data / name)
    data.mkdir(parents=True, exist_ok=True)
    formats[kind]()
    done.write_text(json.dumps(kind), encoding="utf-8")


if __name__ == "__main__":
    main()
