import json
import os

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.multiprocessing.spawn import start_processes

from imagenet_rn50.data.loader import build_loader
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.data.transforms import EvalTransform
from imagenet_rn50.shards.manifest import Manifest
from tests.support import free_ports, write_shards

NUM_SAMPLES, BATCH, SEED = 25, 3, 5


def indices_of(shards, start, stop, rank, world_size, num_workers):
    """Which samples a rank is given in each of its batches."""
    train = Manifest.load(shards).split("train")
    order = ShardShuffleSampler(train.shard_sizes, seed=SEED, window=2)
    share = DistributedBatchSampler(start, stop, BATCH, rank, world_size)
    transform = EvalTransform(18, 16)
    loader = build_loader(shards, train, share, transform, order=order, num_workers=num_workers)
    return [batch.indices.tolist() for batch in loader]


def on_rank(rank, shards, out, start, stop, port):
    """What each of two ranks does: note which samples it was given."""
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)  # what this process was before it was forked
    accelerator = Accelerator(cpu=True)
    assert (accelerator.process_index, accelerator.num_processes) == (rank, 2)
    batches = indices_of(shards, start, stop, rank, world_size=2, num_workers=1)
    # The ranks really speak with each other: they add up how many samples each was given.
    seen = accelerator.reduce(torch.tensor(sum(map(len, batches))), "sum")
    assert int(seen) == stop - start
    (out / f"{start}-{rank}.json").write_text(json.dumps(batches), encoding="utf-8")
    accelerator.end_training()


def on_two_ranks(shards, out, start, stop):
    """Runs two gloo ranks; returns the batches of both in the order of the stream."""
    [port] = free_ports()
    # Forked as loader workers are: what is imported already need not be imported again.
    start_processes(on_rank, (shards, out, start, stop, port), nprocs=2, start_method="fork")
    ranks = [json.loads((out / f"{start}-{rank}.json").read_text()) for rank in (0, 1)]
    return [ranks[k % 2][k // 2] for k in range(sum(map(len, ranks)))]


@pytest.mark.multiprocess
def test_two_gloo_ranks_see_every_sample_once_and_so_they_do_across_one_rank_and_back(tmp_path):
    shards = tmp_path / "shards"
    write_shards(shards, train=[9, 7, 0, 9], validation=[1])
    first, second, end = 3 * BATCH, 10 * BATCH, 2 * NUM_SAMPLES
    batches = on_two_ranks(shards, tmp_path, 0, first)
    batches += indices_of(shards, first, second, rank=0, world_size=1, num_workers=0)
    batches += on_two_ranks(shards, tmp_path, second, end)
    seen = [index for batch in batches for index in batch]
    assert sorted(seen[:NUM_SAMPLES]) == list(range(NUM_SAMPLES))
    assert sorted(seen[NUM_SAMPLES:]) == list(range(NUM_SAMPLES))
    alone = indices_of(shards, 0, end, rank=0, world_size=1, num_workers=0)
    assert seen == [index for batch in alone for index in batch]
