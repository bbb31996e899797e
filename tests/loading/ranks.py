"""What one of several ranks does in a test: note which samples it was given.

RANK=0 WORLD_SIZE=2 ... python -m tests.loading.ranks SHARDS OUT START STOP
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from imagenet_rn50.loading.loader import Share, make_loader
from imagenet_rn50.loading.order import TrainingOrder
from imagenet_rn50.loading.transforms import EvalTransform
from imagenet_rn50.shards.manifest import Manifest

BATCH, SEED = 3, 5


def indices_of(shards, start, stop, rank, world_size, num_workers):
    """Which samples a rank is given in each of its batches."""
    train = Manifest.load(shards).split("train")
    order = TrainingOrder(train.shard_sizes, seed=SEED, window=2)
    share = Share(start, stop, BATCH, rank, world_size)
    transform = EvalTransform(18, 16)
    loader = make_loader(shards, train, share, transform, order=order, num_workers=num_workers)
    return [batch.indices.tolist() for batch in loader]


def main():
    shards, out, start, stop = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
    accelerator = Accelerator()
    rank, world_size = accelerator.process_index, accelerator.num_processes
    assert world_size == 2
    batches = indices_of(shards, start, stop, rank, world_size, num_workers=1)
    # The ranks really speak with each other: they add up how many samples each was given.
    seen = accelerator.reduce(torch.tensor(sum(map(len, batches))), "sum")
    assert int(seen) == stop - start
    (out / f"{start}-{rank}.json").write_text(json.dumps(batches), encoding="utf-8")
    accelerator.end_training()


if __name__ == "__main__":
    main()
