"""The measurements of `benchmarks.gpu`; each runs in a process of its own and prints its rows."""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.train_step_contenders import (
    Case,
    Mode,
    Precision,
    Step,
    make_trainer,
    ours,
    pack_photos,
    plain,
)
from imagenet_rn50.classes import Classes
from imagenet_rn50.evaluation.evaluate import validate_batches, validation_loader
from imagenet_rn50.peaks import peak_tflops, utilisation
from imagenet_rn50.runs.metrics import CHECKPOINT, TRAIN, read_metrics
from imagenet_rn50.shards.manifest import Manifest, Shard, Split
from imagenet_rn50.training.config import CheckpointConfig
from imagenet_rn50.training.trainer import Trainer
from imagenet_rn50.utilisation import training_flops

ROOT = Path(__file__).parents[1]
ROW = "row "  # begins a printed row; what follows is JSON
EXIT_TIME_UP = 75
_NUM_CLASSES = 1000
_MICRO_BATCHES = (2048, 1536, 1280, 1024, 768, 640, 512, 384, 320, 256, 192, 128, 96, 64, 32, 16)
_LOADER_SECONDS = 4.0  # of each measurement, after the queues that were full are used up
_GIB = 2**30

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Sizes of the measurements."""

    data: Path = Path("data/bench-gpu")
    """Folder of the photos and shards, which are made once."""
    photos: int = 320
    """Different photos. Each is listed many times."""
    copies: int = 256
    """Times each photo is listed, so that an epoch is longer than a measurement."""
    sizes: tuple[int, ...] = (224, 192, 160)
    """Sides of the training crops, px."""
    batch: int = 256
    """Micro batch of the sections that do not use the largest."""
    micro_batch: int = 0
    """Micro batch of the steps; 0: the largest that fits."""
    rounds: int = 3
    """Rounds of every contender, their order reversed in every other one."""
    round_seconds: float = 0.7
    """Length of a round."""
    loop_steps: int = 300
    """Steps of the whole loop."""
    resume_steps: int = 160
    """Steps of the runs that are compared, a multiple of 40."""
    workers: tuple[int, ...] = (4, 8, 16)
    """Loader workers."""

    @property
    def shards(self) -> Path:
        """The shards."""
        return self.data / "shards"

    def with_micro_batch(self, micro_batch: int) -> Settings:
        """Return settings whose steps use a micro batch, unless it was given."""
        return replace(self, micro_batch=self.micro_batch or micro_batch)

    def to_json(self) -> str:
        """Return the settings as JSON."""
        return json.dumps(asdict(self) | {"data": str(self.data)})

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read settings that `to_json` wrote."""
        values = json.loads(text)
        for name in ("sizes", "workers"):
            values[name] = tuple(values[name])
        return cls(**values | {"data": Path(values["data"])})


# ---------------------------------------------------------------- shards


def prepare(settings: Settings) -> None:
    """Pack the photos once, and list each of them many times, by hard links to the shards."""
    packed, folder = pack_photos(settings.data, settings.photos), settings.shards
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    manifest = Manifest.load(packed)
    splits = {
        name: _listed_often(split, packed, folder, settings.copies)
        for name, split in manifest.splits.items()
    }
    Manifest("photos", manifest.options, splits).save(folder)
    wnids = tuple(f"n{number:08d}" for number in range(_NUM_CLASSES))
    Classes(wnids, wnids).save(folder)


def _listed_often(split: Split, source: Path, target: Path, copies: int) -> Split:
    """Return a split that lists every sample `copies` times, spread over 1,000 classes."""
    shards: list[Shard] = []
    for number, shard in itertools.product(range(copies), split.shards):
        name = f"{number:04d}-{shard.name}"
        os.link(source / shard.name, target / name)
        shards.append(replace(shard, name=name))
    assert split.crc32s is not None
    labels = np.tile(split.labels, copies)
    return Split(
        tuple(shards),
        np.tile(split.offsets, copies),
        np.tile(split.lengths, copies),
        ((labels + 20 * np.arange(len(labels))) % _NUM_CLASSES).astype(np.int32),
        np.array([b"%08d" % key for key in range(len(labels))]),
        np.tile(split.crc32s, copies),
    )


# ---------------------------------------------------------------- steps


CONTENDERS: dict[str, Callable[[Case, Trainer], Step]] = {
    "ours": ours,
    "torchvision": plain,
    "timm": lambda case, trainer: plain(case, trainer, lambda: timm.create_model("resnet50")),
}


def steps(settings: Settings, until: float, mode: Mode) -> Iterator[Row]:
    """Compare training steps over one batch that is in memory, of each precision and size."""
    precisions: tuple[Precision, ...] = ("bf16", "fp16")
    for size, precision in itertools.product(settings.sizes, precisions):
        case = Case(size, mode, "channels_last", precision, "synthetic")
        yield from _compared(settings, case, until)


def _compared(settings: Settings, case: Case, until: float) -> Iterator[Row]:
    """Time the contenders of one case in alternation."""
    batch = settings.micro_batch
    with tempfile.TemporaryDirectory() as run:
        trainer = make_trainer(case, batch, 0, settings.shards, Path(run))
        flops = training_flops(trainer.recipe.model, case.size, _NUM_CLASSES)
        peak = peak_tflops(torch.cuda.get_device_name(), case.precision)
        contenders: dict[str, Step] = {}
        seconds: dict[str, list[float]] = {}
        counts: dict[str, int] = {}
        for name, build in CONTENDERS.items():
            _check_time(until)
            if case.mode == "compile" and name != "ours" and case.size != max(settings.sizes):
                continue  # compiling takes a minute
            torch.cuda.reset_peak_memory_stats()
            contenders[name] = build(case, trainer)
            began = time.perf_counter()
            _timed(contenders[name], 3)  # compiles, and chooses algorithms
            print(
                f"{name} {case.size} px {case.precision}: first steps "
                f"{time.perf_counter() - began:.1f} s",
                flush=True,
            )
            counts[name] = max(2, round(settings.round_seconds * 2 / _timed(contenders[name], 2)))
            seconds[name] = []
        for number in range(settings.rounds):
            for name in list(contenders)[:: -1 if number % 2 else 1]:
                time_of_step = _timed(contenders[name], counts[name]) / counts[name]
                seconds[name].append(time_of_step)
        for name, times in seconds.items():
            rate = batch / median(times)
            yield {
                "mode": case.mode,
                "precision": case.precision,
                "size": case.size,
                "contender": name,
                "batch": batch,
                "images_per_second": rate,
                "slowest": batch / max(times),
                "fastest": batch / min(times),
                **utilisation(flops, rate, peak),
                "peak_gib": torch.cuda.max_memory_allocated() / _GIB,
            }
    contenders.clear()
    _clean()


def _timed(step: Step, count: int) -> float:
    """Return the seconds of `count` steps, until the device has done them."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        step()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def _clean() -> None:
    gc.collect()
    torch._dynamo.reset()
    torch.cuda.empty_cache()


class TimeUpError(Exception):
    """The time of all sections is up."""


def _check_time(until: float) -> None:
    if time.monotonic() > until:
        raise TimeUpError


def eager(settings: Settings, until: float) -> Iterator[Row]:
    """Yield the steps without torch.compile."""
    yield from steps(settings, until, "eager")


def compiled(settings: Settings, until: float) -> Iterator[Row]:
    """Yield the steps with torch.compile."""
    yield from steps(settings, until, "compile")


def largest_batch(settings: Settings, until: float) -> Iterator[Row]:
    """Yield the largest micro batch of which a step fits into 90% of the device's memory."""
    size = max(settings.sizes)
    case = Case(size, "eager", "channels_last", "bf16", "synthetic")
    limit = 0.9 * torch.cuda.get_device_properties(0).total_memory
    for batch in _MICRO_BATCHES:
        _check_time(until)
        used = _memory_of_a_step(settings, case, batch)
        if used is not None and used <= limit:
            yield {"size": size, "micro_batch": batch, "reserved_gib": used / _GIB}
            return
        _clean()


def _memory_of_a_step(settings: Settings, case: Case, batch: int) -> int | None:
    """Return the bytes that a step reserves; None if there are not enough."""
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as run:
        try:
            _timed(ours(case, make_trainer(case, batch, 0, settings.shards, Path(run))), 2)
        except torch.OutOfMemoryError:
            return None
    return torch.cuda.max_memory_reserved()


# ---------------------------------------------------------------- roofline


def roofline(settings: Settings, until: float) -> Iterator[Row]:
    """Yield what the device reaches in operations that a training step consists of."""
    device = torch.device("cuda")
    bf16 = torch.bfloat16
    source = torch.randn(2**30, device=device, dtype=bf16)
    target = torch.empty_like(source)
    yield _bandwidth("copy", partial(target.copy_, source), 2 * source.nbytes)
    side = 8192
    left, right = (torch.randn(side, side, device=device, dtype=bf16) for _ in range(2))
    seconds = _op_seconds(partial(torch.matmul, left, right))
    yield {"name": f"matrix product {side}^3 bf16", "tflops": 2 * side**3 / seconds / 1e12}

    # The largest activation of a ResNet-50 at 224 px.
    shape = (settings.batch, 256, 56, 56)
    norm = nn.BatchNorm2d(shape[1], device=device)
    for dtype in (torch.bfloat16, torch.float16):  # PyTorch takes cuDNN's BatchNorm for fp16 alone
        images = torch.randn(shape, device=device, dtype=dtype)
        images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        # Passes over the activation: the statistics need one of their own before the output.
        yield from _bandwidths("BatchNorm", norm, images, forward=3, backward=5)
        yield from _bandwidths("ReLU", functional.relu, images, forward=2, backward=3)


def _bandwidths(
    name: str, function: Callable[[Tensor], Tensor], images: Tensor, *, forward: int, backward: int
) -> Iterator[Row]:
    """Yield the bandwidth of a layer, for the passes over its input that it needs at least."""
    gradient = torch.randn_like(images)
    output = function(images)

    def back() -> None:
        torch.autograd.grad(output, images, gradient, retain_graph=True)

    full = f"{name} {str(images.dtype).removeprefix('torch.')}"
    yield _bandwidth(f"{full} forward", lambda: function(images), forward * images.nbytes)
    yield _bandwidth(f"{full} backward", back, backward * images.nbytes)


def _bandwidth(name: str, operation: Callable[[], object], num_bytes: int) -> Row:
    return {"name": name, "gb_per_second": num_bytes / _op_seconds(operation) / 1e9}


def _op_seconds(operation: Callable[[], object]) -> float:
    """Return the median time of an operation on the device."""
    for _ in range(3):
        operation()
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        operation()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)) / 1000)
    return median(times)


_KINDS = (
    ("compiled (norms, activations)", r"^triton"),  # their names list what they fuse
    (
        "convolution",
        r"conv|gemm|implicit|wgrad|dgrad|fprop|xmma|cutlass|cudnn.*(nhwc|ndhwc)|sm\d\d_",
    ),
    ("batch norm", r"batch_?norm|bn_|welford"),
    ("optimizer", r"multi_tensor|FusedSgd|foreach|sgd"),
    ("copies", r"memcpy|memset|copy"),
    ("activations, additions, casts", r"elementwise|relu|add|threshold"),
)


def breakdown(settings: Settings, until: float) -> Iterator[Row]:
    """Yield the share of each kind of kernel in the time of a step, and the device's idle time."""
    count = 5
    for mode in ("eager", "compile"):
        _check_time(until)
        case = Case(max(settings.sizes), mode, "channels_last", "bf16", "synthetic")
        with tempfile.TemporaryDirectory() as run:
            batch = settings.micro_batch
            step = ours(case, make_trainer(case, batch, 0, settings.shards, Path(run)))
            _timed(step, 4)
            unprofiled = _timed(step, count)
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CUDA]
            ) as profiler:
                _timed(step, count)
        kernels = [
            (event.key, event.self_device_time_total / 1e6) for event in profiler.key_averages()
        ]
        busy = sum(seconds for _, seconds in kernels)
        kinds: dict[str, float] = {}
        for name, seconds in kernels:
            kind = next((k for k, p in _KINDS if re.search(p, name, re.I)), "other")
            kinds[kind] = kinds.get(kind, 0) + seconds
        for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1]):
            yield {"mode": mode, "kind": kind, "share": seconds / busy, "ms": 1e3 * seconds / count}
        yield {
            "mode": mode,
            "kind": "step (wall clock)",
            "share": unprofiled / busy,
            "ms": 1e3 * unprofiled / count,
        }
        heaviest = sorted(kernels, key=lambda item: -item[1])[:12]
        for name, seconds in heaviest:
            yield {"mode": mode, "kernel": name[:100], "ms": 1e3 * seconds / count}
        _clean()


# ---------------------------------------------------------------- loader, loop, resume


def loader(settings: Settings, until: float) -> Iterator[Row]:
    """Yield images/s of steps with loader workers, and with one batch that is in memory."""
    size, batch = max(settings.sizes), settings.batch
    synthetic = Case(size, "eager", "channels_last", "bf16", "synthetic")
    real = replace(synthetic, data="loader")
    cases = [(synthetic, 0), *((real, workers) for workers in settings.workers)]
    for case, workers in cases:
        _check_time(until)
        with tempfile.TemporaryDirectory() as run:
            trainer = make_trainer(case, batch, workers, settings.shards, Path(run))
            step = ours(case, trainer)
            _timed(step, 20 if workers else 5)  # the queues that filled meanwhile are used up
            count = max(20, round(_LOADER_SECONDS / (_timed(step, 10) / 10)))
            rate = count * batch / _timed(step, count)
            yield {"data": case.data, "workers": workers, "images_per_second": rate}
        del step, trainer
        _clean()


def loop(settings: Settings, until: float) -> Iterator[Row]:
    """Yield images/s of the bare step and of `Trainer.train`, both with the loader."""
    case = Case(max(settings.sizes), "eager", "channels_last", "bf16", "loader")
    batch, workers = settings.batch, max(settings.workers)
    warm = 40
    for kind in ("bare", "whole", "bare"):
        _check_time(until)
        with tempfile.TemporaryDirectory() as run:
            if kind == "bare":
                trainer = make_trainer(case, batch, workers, settings.shards, Path(run))
                step = ours(case, trainer)
                _timed(step, warm)
                count = settings.loop_steps // 2
                seconds = _timed(step, count)
            else:
                count = settings.loop_steps
                config = CheckpointConfig(checkpoint_minutes=None, stop_at_step=warm + count)
                lines = _train(settings, case, Path(run), workers, config)
                seconds = sum(line["seconds"] for line in lines[warm // 20 :])
            yield {"kind": kind, "steps": count, "images_per_second": batch * count / seconds}
        _clean()


def _train(
    settings: Settings, case: Case, run: Path, workers: int, config: CheckpointConfig
) -> list[Row]:
    """Train until the config's step; return the training lines of metrics.jsonl."""
    trainer = make_trainer(case, settings.batch, workers, settings.shards, run, config)
    with suppress(SystemExit):  # how a run ends that was told to stop at a step
        trainer.train()
    return read_metrics(run, TRAIN)


def resume(settings: Settings, until: float) -> Iterator[Row]:
    """Yield how a resumed run differs from one that never stopped, and what a save costs."""
    case = Case(max(settings.sizes), "eager", "channels_last", "bf16", "loader")
    steps_, workers = settings.resume_steps, max(settings.workers)
    every = steps_ // 4
    with tempfile.TemporaryDirectory() as folder:
        whole, resumed = Path(folder, "whole"), Path(folder, "resumed")

        def train(run: Path, stop: int) -> list[Row]:
            _check_time(until)
            saving = CheckpointConfig(
                checkpoint_minutes=None, checkpoint_steps=every, stop_at_step=stop
            )
            return _train(settings, case, run, workers, saving)

        expected = train(whole, steps_)
        train(resumed, steps_ // 2)
        found = train(resumed, steps_)
        after = [line for line in found if line["samples_seen"] > steps_ // 2 * settings.batch]
        pairs = list(zip(expected[-len(after) :], after, strict=True))
        yield {
            "steps": steps_ // 2,
            "hashes_equal": all(a["sample_hash"] == b["sample_hash"] for a, b in pairs),
            "loss_difference": max(abs(a["loss"] - b["loss"]) / a["loss"] for a, b in pairs),
        }
        for line in read_metrics(whole, CHECKPOINT):
            names = ("stall_seconds", "seconds", "bytes")
            yield {"save": True} | {name: line[name] for name in names}


def evaluation(settings: Settings, until: float) -> Iterator[Row]:
    """Yield images/s of validation."""
    case = Case(224, "eager", "channels_last", "bf16", "loader")
    with tempfile.TemporaryDirectory() as run:
        trainer = make_trainer(case, settings.batch, 0, settings.shards, Path(run))
        split, data = trainer.validation_split, trainer.recipe.data
        device = trainer.accelerator.device
        for _ in range(2):  # the first pass chooses algorithms
            _check_time(until)
            began = time.perf_counter()
            loader = validation_loader(
                trainer.shards,
                split,
                data,
                device=device,
                batch=settings.batch,
                num_workers=max(settings.workers),
            )
            with closing(loader):
                model = trainer.state.model
                accuracy = validate_batches(model, loader, data, split.num_samples, device=device)
            seconds = time.perf_counter() - began
        yield {"num_images": accuracy.num_images, "seconds": seconds}


def tests(settings: Settings, until: float) -> Iterator[Row]:
    """Yield the last line of pytest's tests that need a GPU.

    Only of files that have such tests: others need packages that images for GPUs lack.
    """
    files = [
        str(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *files]
    with suppress(subprocess.TimeoutExpired):
        left = until - time.monotonic()
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=left,
        )
        print(done.stdout[-3000:] if done.returncode else "", flush=True)
        yield {"summary": done.stdout.strip().splitlines()[-1], "passed": done.returncode == 0}
        return
    raise TimeUpError


_SECTIONS: dict[str, Callable[[Settings, float], Iterator[Row]]] = {
    "roofline": roofline,
    "batch": largest_batch,
    "eager": eager,
    "loop": loop,
    "loader": loader,
    "resume": resume,
    "evaluation": evaluation,
    "breakdown": breakdown,
    "tests": tests,
    "compiled": compiled,
}


def main() -> None:
    """Run one section: its name, the seconds it has, and the settings as JSON."""
    name, seconds, settings = sys.argv[1], float(sys.argv[2]), Settings.from_json(sys.argv[3])
    try:
        for row in _SECTIONS[name](settings, time.monotonic() + seconds):
            print(f"{ROW}{json.dumps(row)}", flush=True)
    except TimeUpError:
        raise SystemExit(EXIT_TIME_UP) from None


if __name__ == "__main__":
    main()
