"""Runs that fail, and what they say of it."""

import re

import pytest

from imagenet_rn50.data.sampler import ShardShuffleSampler
from imagenet_rn50.shards.manifest import Manifest
from tests.support import write_tiny
from tests.training.trainers import steps_saved

pytestmark = pytest.mark.multiprocess


def test_a_sample_that_only_the_second_rank_finds_damaged_is_named(trainers, tmp_path):
    tiny = write_tiny(tmp_path)
    train = Manifest.load(tiny / "shards").split("train")
    _, indices = ShardShuffleSampler(train.shard_sizes, seed=0, window=2).indices(0, 8)
    index = int(indices[5])  # of the second micro batch
    shard = tiny / "shards" / train.shards[train.shard_of(index)].name
    content = bytearray(shard.read_bytes())
    content[train.offsets[index] : train.offsets[index] + 20] = bytes(20)
    shard.write_bytes(content)
    first, second = trainers.start_two_ranks(tiny, tiny / "run")
    assert second.wait() == 2, second.said()
    assert first.wait() != 0
    assert f"error: sample {train.key_of(index)} " in second.said()
    assert "continue with --on-corrupt substitute" in second.said()
    assert "Traceback" not in second.said()
    assert train.key_of(index) not in first.said()


@pytest.mark.parametrize(
    ("begin", "place"),
    [
        (None, r"within steps \[1, 3\]"),
        (2, r"in validation, after epoch 1\.14"),  # the last step of an epoch lost it
        (4, r"within steps \[5, 6\]"),
    ],
)
def test_a_rate_that_is_too_high_is_told_with_words_that_go_on(trainers, tmp_path, begin, place):
    tiny, run = write_tiny(tmp_path), tmp_path / "run"
    common = ("--schedule.name", "constant", "--schedule.warmup-epochs", "0", "--epochs", "3")
    if begin:
        trainers.train(tiny, run, *common, "--stop-at-step", str(begin))
    hot = ("--optimizer.lr", "1e30", "--allow-change", "optimizer.lr")
    said = trainers.train(tiny, run, *common, *hot, code=2)
    assert "Traceback" not in said
    last_good = run / "checkpoints" / f"samples-{8 * begin:09d}" if begin else "none"
    problem = f"error: the loss became nan or inf {place}; the last good checkpoint "
    assert re.search(rf"{problem}is {re.escape(str(last_good))}\n", said), said
    fix = said.rpartition("with a lower learning rate: ")[2].split()
    assert fix == ["--optimizer.lr", "5e+29", "--allow-change", "optimizer.lr"]
    assert ("resume from there with" in said) == bool(begin)
    trainers.train(tiny, run, *common, *fix, "--optimizer.lr", "0.05")
    assert steps_saved(run)[-1] == 64  # 3 x 21, in steps of 8
