import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loading.ranks import BATCH, indices_of
from tests.support import write_shards

ROOT = Path(__file__).parents[2]
NUM_SAMPLES = 25


def on_two_ranks(shards, out, start, stop):
    """Runs two gloo ranks; returns the batches of both in the order of the stream."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(word) for word in (shards, out, start, stop)]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place |= {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.loading.ranks", *words],
            cwd=ROOT,
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
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
