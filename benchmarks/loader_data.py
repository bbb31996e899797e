"""The same photos for every loader: JPEGs like ImageNet's, and each loader's own format of them.

    python -m benchmarks.loader_data photos DATA N     first, with the project's own environment
    python -m benchmarks.loader_data FORMAT DATA       with the environment of that format's library

The photos are random crops of four images that ship with scikit-learn, matplotlib and gradio,
scaled and encoded to follow `IMAGENET`: what 1,000 training images of ImageNet, one per class, were
measured to be. The command prints what the photos are beside it. Not measured, and so assumed: the
sizes of the 54% that have none of the six usual ones, and which qualities go with which
subsampling. Not imitated: the 0.3% with an EXIF orientation.
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
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

NUM_CLASSES = 20
IMAGENET = {
    "4:4:4": 0.761,
    "4:2:0": 0.203,
    "gray": 0.023,
    "4:2:2": 0.012,
    "4:4:0": 0.001,
    "quality 96": 0.67,
    "quality 75 to 93": 0.33,
    "progressive": 0.0,
    "500 x 375 px": 0.21,
    "500 x 333 px": 0.10,
    "375 x 500 px": 0.06,
    "333 x 500 px": 0.04,
    "500 x 334 px": 0.03,
    "500 x 332 px": 0.02,
    "mean kB": 109.6,
    "median kB": 107.1,
    "longest side, px": 2400,
}
"""Shares and sizes, measured on 1,000 training images, one per class."""

_SOURCES = (
    ("gradio", "media_assets/images/tower.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
_USUAL_SIZES = ((500, 375), (500, 333), (375, 500), (333, 500), (500, 334), (500, 332))  # px
_SUBSAMPLINGS = {"4:4:4": "444", "4:2:0": "420", "gray": "Gray", "4:2:2": "422", "4:4:0": "440"}
_LONGEST = 2400  # px
_GRAIN = (1.0, 5.0)  # standard deviation, levels of 255
_SHARD_SAMPLES = 160
_RESIZED = 500  # px, longer side, of the resized variants
_RECODED = 90  # quality of the re-encoded variants: that of FFCV's writer


def write_photos(data: Path, count: int) -> None:
    """Write `count` photos as DATA/folder/<class>/<number>.jpg, and print what they are."""
    images = [_open(package, path) for package, path in _SOURCES]
    rng = np.random.default_rng(0)
    sizes = _dealt(
        [IMAGENET[f"{width} x {height} px"] for width, height in _USUAL_SIZES], count, rng
    )
    kinds = _dealt([IMAGENET[name] for name in _SUBSAMPLINGS], count, rng)
    contents = []
    for number, (size, kind) in enumerate(zip(sizes, kinds, strict=True)):
        dimensions = _USUAL_SIZES[size] if size < len(_USUAL_SIZES) else _unusual_size(rng)
        subsampling = list(_SUBSAMPLINGS)[kind]
        contents.append(_photo(images[number % len(images)], dimensions, subsampling, rng))
        target = data / "folder" / f"{number % NUM_CLASSES:03d}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(contents[-1])
    print(compare(statistics(contents)))


def compare(achieved: dict[str, float]) -> str:
    """Return a table of statistics beside `IMAGENET`."""
    lines = [f"{'share, or size':<20}{'photos':>10}{'ImageNet':>10}"]
    lines += [f"{name:<20}{achieved[name]:>10.3f}{IMAGENET[name]:>10.3f}" for name in IMAGENET]
    return "\n".join(lines) + "\n"


def statistics(photos: Sequence[bytes]) -> dict[str, float]:
    """Return what `IMAGENET` lists, of some JPEGs."""
    sizes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    longest = 0
    tables = {quality: _luminance_table(quality) for quality in range(75, 97)}
    for photo in photos:
        with Image.open(io.BytesIO(photo)) as image:
            assert isinstance(image, JpegImagePlugin.JpegImageFile)
            sizes[f"{image.width} x {image.height} px"] += 1
            longest = max(longest, *image.size)
            kinds[_subsampling(image)] += 1
            kinds["progressive"] += "progressive" in image.info
            quality = next(q for q, table in tables.items() if table == image.quantization[0])
        kinds["quality 96"] += quality == 96
        kinds["quality 75 to 93"] += 75 <= quality <= 93
    lengths = [len(photo) / 1000 for photo in photos]
    achieved = {name: (sizes[name] + kinds[name]) / len(photos) for name in IMAGENET}
    achieved["mean kB"], achieved["median kB"] = float(np.mean(lengths)), float(np.median(lengths))
    achieved["longest side, px"] = longest
    return achieved


def _subsampling(image: JpegImagePlugin.JpegImageFile) -> str:
    """Return the name of an image's chroma subsampling."""
    factors = [layer[1:3] for layer in image.layer]
    if len(factors) == 1:
        return "gray"
    return {(1, 1): "4:4:4", (2, 2): "4:2:0", (2, 1): "4:2:2", (1, 2): "4:4:0"}[factors[0]]


def _luminance_table(quality: int) -> list[int]:
    """Return the table that libjpeg quantizes luminance with."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="JPEG", quality=quality)
    image = Image.open(buffer)
    assert isinstance(image, JpegImagePlugin.JpegImageFile)
    return list(image.quantization[0])


def _open(package: str, path: str) -> Image.Image:
    """Open an image that ships with a package, without importing the package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Image.open(Path(spec.origin).parent / path).convert("RGB")


def _dealt(shares: Sequence[float], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return which share each of `count` photos belongs to, in random order; the rest is last."""
    stops = np.round(count * np.cumsum(shares)).astype(int)
    return rng.permutation(np.searchsorted(stops, np.arange(count), side="right"))


def _unusual_size(rng: np.random.Generator) -> tuple[int, int]:
    """Return width and height, px, of a photo that has none of the usual sizes."""
    chance = rng.random()
    if chance < 0.6:  # the longer side is 500 px, as of most of the others
        longer = 500.0
    elif chance < 0.85:
        longer = rng.uniform(120, 500)
    else:  # fewer, the larger they are
        longer = 500 * (_LONGEST / 500) ** (rng.random() ** 3)
    sides = round(longer), round(longer * rng.uniform(0.6, 1))
    return sides if rng.random() < 0.7 else sides[::-1]


def _photo(
    source: Image.Image, size: tuple[int, int], subsampling: str, rng: np.random.Generator
) -> bytes:
    """Return one JPEG: a random crop with some grain, perhaps mirrored."""
    import simplejpeg  # writes 4:4:0, which Pillow does not

    width, height = size
    part = rng.uniform(0.7, 1.0) * min(source.width / width, source.height / height)
    left = rng.uniform(0, source.width - part * width)
    top = rng.uniform(0, source.height - part * height)
    box = (left, top, left + part * width, top + part * height)
    photo = source.resize(size, Image.Resampling.BICUBIC, box=box)
    if rng.random() < 0.5:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if subsampling == "gray":
        photo = photo.convert("L")
    grain = rng.normal(0, rng.uniform(*_GRAIN), (height, width, 1))
    pixels = np.asarray(photo).reshape(height, width, -1)
    quality = int(rng.integers(75, 94))
    if subsampling == "4:4:4" and rng.random() < IMAGENET["quality 96"] / IMAGENET["4:4:4"]:
        quality = 96
    jpeg: bytes = simplejpeg.encode_jpeg(
        np.clip(pixels + grain, 0, 255).astype(np.uint8),
        quality,
        "GRAY" if subsampling == "gray" else "RGB",
        _SUBSAMPLINGS[subsampling],
    )
    return jpeg


def photos_of(data: Path) -> list[tuple[Path, int]]:
    """Return path and class of every photo, in a fixed random order, as packing would have it."""
    paths = sorted((data / "folder").glob("*/*.jpg"))
    shuffled = np.random.default_rng(1).permutation(len(paths))
    return [(paths[k], int(paths[k].parent.name)) for k in shuffled]


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


def recoded_with_restarts(content: bytes, longest: int | None = None) -> bytes:
    """Return a photo re-encoded at quality 90 in 4:2:0, with restart markers and table.

    Args:
        content: A JPEG.
        longest: Resize what has a longer side, px; None keeps the size.
    """
    with Image.open(io.BytesIO(content)) as opened:
        photo: Image.Image = opened
        factor = longest / max(photo.size) if longest else 1
        if factor < 1:
            size = (round(photo.width * factor), round(photo.height * factor))
            photo = photo.resize(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        photo.save(buffer, format="JPEG", quality=_RECODED, subsampling="4:2:0")
    return with_restarts(buffer.getvalue())


def thumbnail(content: bytes) -> bytes:
    """Return a photo as a JPEG of 16 px, which costs nothing to read."""
    with Image.open(io.BytesIO(content)) as photo:
        buffer = io.BytesIO()
        photo.convert("RGB").resize((16, 16)).save(buffer, format="JPEG")
    return buffer.getvalue()


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


def mean_kb(data: Path, kind: str) -> float:
    """Return the mean size of an image in a format, kB."""
    if (data / kind / "manifest.json").exists():
        from imagenet_rn50.shards.manifest import TRAIN, Manifest

        return float(Manifest.load(data / kind).split(TRAIN).lengths.mean()) / 1000
    paths = list((data / "folder").glob("*/*.jpg"))
    file = data / f"{kind}.beton"
    files = [file] if file.exists() else paths
    return sum(path.stat().st_size for path in files) / len(paths) / 1000


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
    image = RGBImageField(write_mode="jpg", max_resolution=resolution, jpeg_quality=_RECODED)
    writer = DatasetWriter(str(data / name), {"image": image, "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(_Photos(data))


def main() -> None:
    """Write what the command line names."""
    kind, data = sys.argv[1], Path(sys.argv[2])
    formats: dict[str, Callable[[], None]] = {
        "photos": lambda: write_photos(data, int(sys.argv[3])),
        "shards": lambda: write_shards(data, "shards", lambda content: content),
        "restarts": lambda: write_shards(data, "restarts", with_restarts),
        "recoded": lambda: write_shards(data, "recoded", recoded_with_restarts),
        "recoded500": lambda: write_shards(
            data, "recoded500", partial(recoded_with_restarts, longest=_RESIZED)
        ),
        "thumbnails": lambda: write_shards(data, "thumbnails", thumbnail),
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
