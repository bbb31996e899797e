import json
import os
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
    options = (
        "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
        "--dynamo_backend no --main_process_port 0 -m tests.loading.ranks"
    ).split()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            *options,
            str(shards),
            str(out),
            str(start),
            str(stop),
        ],
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
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
