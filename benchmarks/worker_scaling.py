"""Images/s of the loader with 1 to 64 workers, where reading and decoding is replaced by a wait.

    python -m benchmarks.loader_data photos data/bench-loaders 2560
    python -m benchmarks.loader_data thumbnails data/bench-loaders
    python -m benchmarks.worker_scaling --data data/bench-loaders/thumbnails

A machine with few cores cannot decode in 64 workers. So the transform waits as long as reading,
checking and decoding a photo takes, without using a core, and writes an image; the JPEGs are
thumbnails. It waits at every 16th image, for 16 images: to fall asleep and wake up costs as much of
a core as all else here, and decoding does not sleep. The rest is the real loader: order, reading
ahead, batches in shared memory, the queue, the main process. Whatever serialises workers, or makes
the main process the bottleneck, lowers images/s per worker. Once the machine's own cores are busy,
which is printed, the wait no longer stands for cores that other machines have, and the figures are
a lower bound.

Table and JSON go to benchmarks/results/.
"""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
import tyro
from torch import Tensor

from benchmarks.loader_contenders import cpu_seconds, memory_mb
from benchmarks.loaders import describe_run, run_metadata
from imagenet_rn50.data.loader import build_loader
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.shards.manifest import TRAIN, Manifest

ROOT = Path(__file__).parents[1]
_SIZE = 224
_REFERENCE = 2
_IMAGES_PER_WAIT = 16


@dataclass(frozen=True)
class Arguments:
    """Time the loader with many workers."""

    data: Path = Path("data/bench-loaders/thumbnails")
    """Folder of shards."""
    workers: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of workers."""
    wait_ms: tuple[float, ...] = (1.41, 2.13)
    """What an image takes: the sum of stages as measured; so long that 32 workers give 15,000/s."""
    batch: int = 64
    """Images in a batch."""
    seconds: float = 6.0
    """Time of each measurement."""
    out: Path = ROOT / "benchmarks" / "results" / "worker_scaling"
    """Where .txt and .json go."""


@dataclass(frozen=True)
class TimedWait:
    """A transform that takes as long as decoding, without a core.

    Args:
        seconds: How long.
    """

    seconds: float
    dtype: ClassVar[torch.dtype] = torch.uint8
    _pending: list[int] = field(default_factory=lambda: [0])

    def size_at(self, epoch: int) -> int:
        """Return the side of the results, px."""
        return _SIZE

    def __call__(self, content: bytes, epoch: int, index: int, out: Tensor | None = None) -> Tensor:
        """Wait, then write an image of one color that depends on the sample."""
        assert out is not None
        self._pending[0] += 1
        if self._pending[0] == _IMAGES_PER_WAIT:
            self._pending[0] = 0
            time.sleep(_IMAGES_PER_WAIT * self.seconds)
        return out.fill_(index % 256)


def measure(arguments: Arguments, workers: int, wait_ms: float) -> dict[str, float]:
    """Time whole rounds of all workers, after the second one."""
    split = Manifest.load(arguments.data).split(TRAIN)
    loader = build_loader(
        arguments.data,
        split,
        DistributedBatchSampler(0, 10**9, arguments.batch),
        TimedWait(wait_ms / 1000),
        order=ShardShuffleSampler(split.shard_sizes, seed=0, window=32),
        num_workers=workers,
    )
    launched = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter() - launched
    for _ in range(4 * workers - 1):  # until each has emptied its queue
        next(batches)
    began, cpu, images = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - began < arguments.seconds:
        for _ in range(workers):
            batch = next(batches)
            colors = (batch.indices % 256).to(torch.uint8)
            assert torch.equal(batch.images[:, 0, 0, 0], colors), "a batch was overwritten"
            images += len(batch.labels)
    seconds, used = time.perf_counter() - began, cpu_seconds() - cpu
    memory = memory_mb()
    loader.close()
    return {
        "wait_ms": wait_ms,
        "workers": workers,
        "images_per_s": images / seconds,
        "per_worker": images / seconds / workers,
        "cpu_ms": 1000 * used / images,
        "cores_used": used / seconds,
        "first_batch_s": first,
        "memory_mb": memory,
    }


def main() -> None:
    """Print and save the table."""
    arguments = tyro.cli(Arguments)
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # that is the point
    rows = []
    for wait_ms in arguments.wait_ms:
        for workers in arguments.workers:
            rows.append(measure(arguments, workers, wait_ms))
            print(json.dumps(rows[-1]), flush=True)
    made_by = run_metadata("benchmarks.worker_scaling")
    lines = [
        describe_run(made_by),
        f"batch {arguments.batch}, a wait for reading and decoding",
        f"of_2: images/s of a worker as part of that with {_REFERENCE} workers",
        "",
        "".join(f"{name:>15}" for name in [*rows[0], "of_2"]),
    ]
    for row in rows:
        reference = next(
            (
                other["per_worker"]
                for other in rows
                if (other["wait_ms"], other["workers"]) == (row["wait_ms"], _REFERENCE)
            ),
            float("nan"),
        )
        row["of_2"] = row["per_worker"] / reference
        lines.append("".join(f"{value:>15.2f}" for value in row.values()))
    text = "\n".join(lines) + "\n"
    print(text)
    arguments.out.with_suffix(".txt").write_text(text, encoding="utf-8")
    saved = json.dumps({**made_by, "batch": arguments.batch, "rows": rows}, indent=1) + "\n"
    arguments.out.with_suffix(".json").write_text(saved, encoding="utf-8")


if __name__ == "__main__":
    main()
