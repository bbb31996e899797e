"""Small real shards, written with tarfile, recipes and free ports for tests."""

import io
import socket
import tarfile
import zlib
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from imagenet_rn50.classes import Classes
from imagenet_rn50.shards.manifest import TRAIN, VALIDATION, Manifest, Shard, Split
from imagenet_rn50.utils.files import sha256_of_file

needs_fork = pytest.mark.skipif(
    "__import__('multiprocessing').get_start_method() != 'fork'",  # --start-method sets it later
    reason="its workers need what the test has changed in this process",
)
CLASSES = Classes(wnids=("n00000001", "n00000002", "n00000003"), names=("first", "second", "third"))


def imagenet1k_wnids() -> tuple[str, ...]:
    """Return the wnids of ImageNet-1k's classes, from timm."""
    [file] = [f for f in files("timm") or [] if f.name == "imagenet_synsets.txt"]
    return tuple(file.read_text(encoding="utf-8").split())


def jpeg_bytes(seed: int, height: int = 24, width: int = 32) -> bytes:
    """Return a smooth random image as JPEG."""
    rough = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def write_pets(folder: Path, num_images: int = 20) -> Path:
    """Write `cats/`, `dogs/` and `rabbits/`, drawn as discs, bars and posts; return `folder`."""
    for number, name in enumerate(("cats", "dogs", "rabbits")):
        (folder / name).mkdir(parents=True)
        for index in range(num_images):
            rng = np.random.default_rng([number, index])
            width, height = rng.integers(64, 128, 2).tolist()
            image = Image.new("RGB", (width, height), tuple(rng.integers(0, 100, 3).tolist()))
            long = min(width, height) * rng.uniform(0.25, 0.45)
            half = np.array([(long, long), (long, long / 3), (long / 3, long)][number])
            center = np.array([width / 2, height / 2])
            draw = ImageDraw.Draw(image)
            shape = draw.ellipse if number == 0 else draw.rectangle
            color = tuple(rng.integers(156, 256, 3).tolist())
            shape((*(center - half), *(center + half)), fill=color)
            image.save(folder / name / f"{name}-{index:02d}.{'png' if index == 3 else 'jpg'}")
    (folder / ".DS_Store").write_bytes(b"Bud1")
    return folder


def write_split(folder: Path, name: str, sizes: list[int]) -> Split:
    """Write one tar per size; sample i is `jpeg_bytes(i)` of class i % 3."""
    shards, offsets, lengths, keys, crc32s = [], [], [], [], []
    index = 0
    for number, size in enumerate(sizes):
        path = folder / f"tiny-{name}-{number}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for _ in range(size):
                members = {"jpg": jpeg_bytes(index), "cls": str(index % 3).encode()}
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"sample_{index:05d}.{extension}")
                    info.size = len(content)
                    if extension == "jpg":
                        offsets.append(tar.offset + tarfile.BLOCKSIZE)
                        lengths.append(info.size)
                        crc32s.append(zlib.crc32(content))
                    tar.addfile(info, io.BytesIO(content))
                keys.append(f"sample_{index:05d}".encode())
                index += 1
        shards.append(Shard(path.name, size, path.stat().st_size, sha256_of_file(path)))
    return Split(
        shards=tuple(shards),
        offsets=np.array(offsets, dtype=np.int64),
        lengths=np.array(lengths, dtype=np.int32),
        labels=np.arange(index, dtype=np.int32) % 3,
        keys=np.array(keys, dtype="S12"),
        crc32s=np.array(crc32s, dtype=np.uint32),
    )


def write_shards(folder: Path, train: list[int], validation: list[int]) -> Manifest:
    """Write a dataset of tiny images: tars, manifest and classes."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {
        TRAIN: write_split(folder, TRAIN, train),
        VALIDATION: write_split(folder, VALIDATION, validation),
    }
    manifest = Manifest(dataset="tiny", options={}, splits=splits)
    manifest.save(folder)
    CLASSES.save(folder)
    return manifest


TINY_RECIPE = """\
epochs: 2
global_batch: 8
micro_batch: 4
model: {embedding_size: 8, hidden_sizes: [8, 8], depths: [1, 1], layer_type: basic}
data: {train_size: 16, eval_size: 16, eval_resize: 18, shuffle_window: 2}
optimizer: {lr: 0.05}
schedule: {warmup_epochs: 0.5}
"""


def write_recipe(folder: Path, text: str = TINY_RECIPE) -> Path:
    """Write a recipe that trains in a second."""
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def write_tiny(folder: Path) -> Path:
    """Write shards of 21 and 11 images and a recipe; return the shards' parent folder."""
    write_shards(folder / "shards", train=[8, 6, 7], validation=[6, 5])
    write_recipe(folder)
    return folder


def free_ports(count: int = 1) -> list[int]:
    """Return unused TCP ports."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports
