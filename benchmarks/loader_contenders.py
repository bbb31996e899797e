"""One loader, timed in a process of its own.

    python -m benchmarks.loader_contenders NAME DATA BATCH WORKERS BATCHES

Each is set up as its own documentation shows, for a random crop of 224 px with a flip. Those that
can hand out uint8 do so, which is faster; ImageFolder and WebDataset normalise to float32, as the
examples of both do. The process prints one line of JSON.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

_SIZE = 224
_WARM_UP = 2  # batches after the first
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PIPE_CHILDREN = "/proc/{0}/task/{0}/children"


def ours(folder: str, data: Path, batch: int, workers: int) -> Iterator[Any]:
    """This project's loader."""
    from imagenet_rn50.data.loader import build_loader
    from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
    from imagenet_rn50.data.transforms import TrainTransform
    from imagenet_rn50.recipe import DataRecipe
    from imagenet_rn50.shards.manifest import TRAIN, Manifest

    split = Manifest.load(data / folder).split(TRAIN)
    order = ShardShuffleSampler(split.shard_sizes, seed=0, window=32)
    transform = TrainTransform(DataRecipe(), seed=0)
    share = DistributedBatchSampler(0, 10**9, batch)
    loader = build_loader(data / folder, split, share, transform, order=order, num_workers=workers)
    return iter(loader)


def _pil_transform(floats: bool) -> Callable[[Any], Any]:
    """The usual torchvision transform of PIL images."""
    from torchvision import transforms

    crop = [transforms.RandomResizedCrop(_SIZE), transforms.RandomHorizontalFlip()]
    last = [transforms.PILToTensor()]
    if floats:
        last = [transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)]
    composed: Callable[[Any], Any] = transforms.Compose([*crop, *last])
    return composed


def _open(jpeg: bytes) -> Any:
    """Open a JPEG with Pillow."""
    from PIL import Image

    return Image.open(io.BytesIO(jpeg)).convert("RGB")


def _again(make: Callable[[], Any]) -> Iterator[Any]:
    """Repeats passes over a loader."""
    loader = make()
    while True:
        yield from loader


def _shuffled(dataset: Any, batch: int, workers: int) -> Iterator[Any]:
    """Batch a dataset with torch's DataLoader, as PyTorch's ImageNet example does."""
    from torch.utils.data import DataLoader

    return _again(
        lambda: DataLoader(
            dataset,
            batch,
            shuffle=True,
            num_workers=workers,
            persistent_workers=True,
            drop_last=True,
        )
    )


def imagefolder(data: Path, batch: int, workers: int) -> Iterator[Any]:
    """Torchvision's ImageFolder, as in PyTorch's ImageNet example."""
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(data / "folder"), _pil_transform(floats=True))
    return _shuffled(dataset, batch, workers)


def webdataset(data: Path, batch: int, workers: int) -> Iterator[Any]:
    """Stock WebDataset, batched in the workers, which was faster than in the main process."""
    import webdataset as wds

    urls = sorted(str(path) for path in (data / "shards").glob("*.tar"))
    dataset = (
        wds.WebDataset(urls, shardshuffle=100, resampled=True)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(_pil_transform(floats=True), lambda label: label)
        .batched(batch, partial=False)
    )
    return iter(wds.WebLoader(dataset, batch_size=None, num_workers=workers))


def _transform_rows(transform: Callable[[Any], Any], rows: dict[str, Any]) -> dict[str, Any]:
    """Transforms rows of `datasets`."""
    images = [transform(image.convert("RGB")) for image in rows["jpg"]]
    return {"images": images, "labels": rows["cls"]}


def hf_datasets(data: Path, batch: int, workers: int) -> Iterator[Any]:
    """Hugging Face `datasets`, streaming the WebDataset shards."""
    from datasets import load_dataset
    from torch.utils.data import DataLoader

    urls = sorted(str(path) for path in (data / "shards").glob("*.tar"))
    dataset = load_dataset("webdataset", data_files={"train": urls}, split="train", streaming=True)
    dataset = dataset.shuffle(seed=0, buffer_size=1000)
    change = partial(_transform_rows, _pil_transform(floats=False))
    dataset = dataset.map(
        change, batched=True, batch_size=32, remove_columns=["jpg", "cls", "__key__", "__url__"]
    )
    return _again(lambda: DataLoader(dataset.with_format("torch"), batch, num_workers=workers))


def mosaicml(data: Path, batch: int, workers: int) -> Iterator[Any]:
    """The loader of mosaicml-streaming."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    transform = _pil_transform(floats=False)

    class Photos(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            return transform(_open(sample["jpg"])), sample["cls"]

    dataset = Photos(local=str(data / "mds"), shuffle=True, batch_size=batch)
    return _again(lambda: DataLoader(dataset, batch, num_workers=workers, persistent_workers=True))


def litdata(data: Path, batch: int, workers: int) -> Iterator[Any]:
    """The loader of litdata."""
    import litdata as lit

    transform = _pil_transform(floats=False)

    class Photos(lit.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            sample = super().__getitem__(index)
            return transform(_open(sample["jpg"])), sample["cls"]

    dataset = Photos(str(data / "litdata"), shuffle=True)
    return _again(lambda: lit.StreamingDataLoader(dataset, batch_size=batch, num_workers=workers))


def dali(folder: str, data: Path, batch: int, workers: int) -> Iterator[Any]:
    """DALI with CPU operators only, reading WebDataset shards."""
    from nvidia.dali import fn, pipeline_def, types

    urls = sorted(str(path) for path in (data / folder).glob("*.tar"))

    @pipeline_def(batch_size=batch, num_threads=workers, device_id=None, prefetch_queue_depth=2)
    def pipeline() -> Any:
        jpegs, labels = fn.readers.webdataset(
            paths=urls, ext=["jpg", "cls"], random_shuffle=True, initial_fill=1000
        )
        images = fn.decoders.image_random_crop(
            jpegs, device="cpu", random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        images = fn.resize(images, size=[_SIZE, _SIZE], interp_type=types.INTERP_LINEAR)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    built = pipeline()
    built.build()
    while True:
        images, _ = built.run()
        yield images.as_array()


def _random_crop(height: int, width: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random resized crop, as torchvision draws it."""
    import random

    for _ in range(10):
        area = height * width * random.uniform(0.08, 1)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = (
                random.randint(0, height - crop_height),
                random.randint(0, width - crop_width),
            )
            return top, left, crop_height, crop_width
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def spdl(data: Path, batch: int, workers: int) -> Iterator[Any]:
    """SPDL: threads that decode, crop and scale with FFmpeg's filters, into uint8 batches.

    The size, which the filter's crop needs, is read from the JPEG by Pillow.
    """
    import random

    import spdl.io
    from PIL import Image
    from spdl.pipeline import PipelineBuilder

    paths = sorted(str(path) for path in (data / "folder").glob("*/*.jpg"))

    def endless() -> Iterator[str]:
        while True:
            yield from random.sample(paths, len(paths))

    def decode(path: str) -> Any:
        content = Path(path).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
        top, left, crop_height, crop_width = _random_crop(height, width)
        filters = f"crop={crop_width}:{crop_height}:{left}:{top},scale={_SIZE}:{_SIZE}"
        filters += ",hflip" if random.random() < 0.5 else ""
        packets = spdl.io.demux_image(content)
        return spdl.io.decode_packets(packets, filter_desc=f"{filters},format=pix_fmts=rgb24")

    def collate(frames: list[Any]) -> Any:
        return spdl.io.to_torch(spdl.io.convert_frames(frames))

    pipeline = (
        PipelineBuilder()
        .add_source(endless())
        .pipe(decode, concurrency=workers, output_order="completion")
        .aggregate(batch)
        .pipe(collate)
        .add_sink(4)
        .build(num_threads=workers + 1)
    )
    with pipeline.auto_stop():
        yield from pipeline


def torchcodec(data: Path, batch: int, workers: int) -> Iterator[Any]:
    """Torchvision's ImageFolder with TorchCodec's decoder and transforms of uint8."""
    from torchcodec.decoders import decode_jpeg
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose([v2.RandomResizedCrop(_SIZE, antialias=True), v2.RandomHorizontalFlip()])

    dataset = ImageFolder(str(data / "folder"), transform, loader=decode_jpeg)
    return _shuffled(dataset, batch, workers)


def ffcv(name: str, data: Path, batch: int, workers: int) -> Iterator[Any]:
    """FFCV over its own file of JPEGs."""
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage

    loader = Loader(
        str(data / f"{name}.beton"),
        batch_size=batch,
        num_workers=workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={
            "image": [
                RandomResizedCropRGBImageDecoder((_SIZE, _SIZE)),
                RandomHorizontalFlip(),
                ToTensor(),
                ToTorchImage(),
            ],
            "label": [IntDecoder(), ToTensor()],
        },
    )
    return _again(lambda: loader)


CONTENDERS: dict[str, Callable[[Path, int, int], Iterator[Any]]] = {
    "ours": partial(ours, "restarts"),
    "ours, no markers": partial(ours, "shards"),
    "ours, re-encoded": partial(ours, "recoded"),
    "ours, 500 px": partial(ours, "recoded500"),
    "ImageFolder": imagefolder,
    "webdataset": webdataset,
    "datasets": hf_datasets,
    "mosaicml-streaming": mosaicml,
    "litdata": litdata,
    "torchcodec": torchcodec,
    "SPDL": spdl,
    "DALI": partial(dali, "shards"),
    "DALI, markers": partial(dali, "restarts"),
    "FFCV": partial(ffcv, "ffcv"),
    "FFCV, 500 px": partial(ffcv, "ffcv500"),
}


_PACKAGES = {
    "ours": ("torch", "simplejpeg", "webdataset"),
    "ImageFolder": ("torchvision", "pillow"),
    "webdataset": ("webdataset", "pillow"),
    "datasets": ("datasets", "pillow"),
    "mosaicml-streaming": ("mosaicml-streaming", "pillow"),
    "litdata": ("litdata", "pillow"),
    "torchcodec": ("torchcodec", "torchvision"),
    "SPDL": ("spdl-io", "spdl-core"),
    "DALI": ("nvidia-dali-cuda120",),
    "FFCV": ("ffcv",),
}


def versions(name: str) -> dict[str, str]:
    """Return the versions of what a loader consists of."""
    return {package: version(package) for package in _PACKAGES[name.partition(",")[0]]}


def _family(process: int) -> list[int]:
    """Return a process and its descendants."""
    try:
        children = Path(_PIPE_CHILDREN.format(process)).read_text(encoding="ascii").split()
    except OSError:
        return [process]
    return [process, *(found for child in children for found in _family(int(child)))]


def cpu_seconds() -> float:
    """Return the CPU time of this process and its descendants so far."""
    ticks = 0
    for process in _family(os.getpid()):
        try:
            stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii")
        except OSError:
            continue
        ticks += sum(
            int(value) for value in stat.rpartition(")")[2].split()[11:15]
        )  # with ended children
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb() -> float:
    """Return the memory of this process and its descendants; what they share counts once."""
    total = 0
    for process in _family(os.getpid()):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1000


def measure(name: str, data: Path, batch: int, workers: int, batches: int) -> dict[str, Any]:
    """Time a loader: the first batch from its construction, the others after two more."""
    peak = [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.25):
            peak[0] = max(peak[0], memory_mb())

    watcher = threading.Thread(target=watch, daemon=True)
    began = time.perf_counter()
    loader = CONTENDERS[name](data, batch, workers)
    next(loader)
    first = time.perf_counter()
    for _ in range(_WARM_UP):
        next(loader)
    watcher.start()
    started, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(batches):
        next(loader)
    seconds, used = time.perf_counter() - started, cpu_seconds() - cpu
    done.set()
    return {
        "images_per_s": batches * batch / seconds,
        "first_batch_s": first - began,
        "cpu_ms": 1000 * used / (batches * batch),
        "peak_mb": max(peak[0], memory_mb()),
    }


if __name__ == "__main__":
    name, data, *numbers = sys.argv[1:]
    figures = measure(name, Path(data), *map(int, numbers))
    print(json.dumps({**figures, "versions": versions(name)}), flush=True)
    os._exit(0)  # some loaders hang when they are torn down
