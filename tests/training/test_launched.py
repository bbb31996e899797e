"""Trainers under `accelerate launch`: signals to the launcher, and ranks that vanish."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from imagenet_rn50.data.sampler import ShardShuffleSampler
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.shards.manifest import TRAIN, Manifest
from imagenet_rn50.training.sample_hash import hash_of_samples, wrapped
from tests.training.trainers import (
    EXIT_INTERRUPTED,
    NUM_EPOCHS,
    NUM_TRAIN,
    PATIENCE_S,
    ROOT,
    assert_same_run,
    lines_of,
    steps_saved,
    wait_until,
)

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file"]

pytestmark = pytest.mark.multiprocess


class Launched:
    """Trainers under `accelerate launch`, as a user starts them."""

    def __init__(self, config, tiny, run, *more):
        words = ["train_accelerate.py", "--recipe", str(tiny / "tiny.yaml"), "--run", str(run)]
        words += ["--shards", str(tiny / "shards"), "--workers", "1", *more]
        self.run = run
        self.num_before = len(lines_of(run, "validation"))
        self.process = subprocess.Popen(
            [*LAUNCH, f"accelerate_configs/{config}.yaml", *words],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def until_trained(self):
        """Waits for an epoch of this launch."""
        wait_until(self._has_trained)
        assert self.process.poll() is None, self.process.communicate()[0]

    def _has_trained(self):
        has_ended = self.process.poll() is not None
        return has_ended or len(lines_of(self.run, "validation")) > self.num_before

    def ctrl_c(self):
        """Sends SIGINT to the whole process group, as a terminal does to the foreground one."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ranks(self):
        """Returns the process ids of the trainers, by rank."""
        children = psutil.Process(self.process.pid).children()
        return {int(child.environ().get("RANK", "0")): child.pid for child in children}

    def wait(self):
        """Returns the launcher's exit code and what was said."""
        said, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, said


def test_a_launcher_that_is_ended_takes_its_one_trainer_along_and_it_saves(
    tiny, trainers, finished
):
    run = tiny / "launched"
    with Launched("cpu", tiny, run) as launched:
        launched.until_trained()
        (trainer,) = launched.ranks().values()
        launched.process.send_signal(signal.SIGTERM)
        code, said = launched.wait()  # until the trainer too has closed its output
    assert code == -signal.SIGTERM
    wait_until(lambda: not psutil.pid_exists(trainer))
    assert read_metrics(run, "stop")[-1]["reason"] == "the launcher exited"
    assert "ACCELERATE_USE_CPU=1 python -m accelerate.commands.launch --quiet --config_file" in said
    stopped_at = read_metrics(run, "stop")[-1]["samples_seen"]
    assert stopped_at == steps_saved(run)[-1] < NUM_EPOCHS * NUM_TRAIN
    trainers.train(tiny, run)
    assert_same_run(run, finished)


def test_two_ranks_then_one_then_two_see_the_samples_of_the_order_and_no_others(tiny, trainers):
    run, long = tiny / "ranks", ("--epochs", "5000")
    trainers.train_on_two_ranks(tiny, run, *long, "--stop-at-step", "3")
    trainers.train(tiny, run, *long, "--stop-at-step", "6")
    assert steps_saved(run)[-1] // 8 == 6

    first, second = trainers.start_two_ranks(tiny, run, *long)
    first.until_trained()
    second.send(signal.SIGTERM)  # one of two, and not the one that writes
    assert [rank.wait() for rank in (first, second)] == [EXIT_INTERRUPTED] * 2, first.said()
    stop = read_metrics(run, "stop")[-1]
    assert stop["reason"] == "a signal to another rank"
    assert stop["samples_seen"] == steps_saved(run)[-1]
    assert [line["world_size"] for line in read_metrics(run, "start")] == [2, 1, 2]

    train = Manifest.load(tiny / "shards").split(TRAIN)
    order = ShardShuffleSampler(train.shard_sizes, seed=0, window=2)
    _, indices = order.indices(0, stop["samples_seen"])
    expected = wrapped(hash_of_samples(0, torch.from_numpy(indices)))
    assert read_metrics(run, "train")[-1]["sample_hash"] == f"{expected:016x}"
    validated = [line["samples_seen"] for line in read_metrics(run, "validation")]
    assert validated == sorted(set(validated))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "code"), [("cpu", -signal.SIGTERM), ("cpu_2proc", -signal.SIGKILL)]
)
def test_ctrl_c_under_a_launcher_saves_and_shows_no_traceback_and_no_warning(tiny, config, code):
    run, long = tiny / f"ctrl-c-{config}", ("--epochs", "5000")
    with Launched(config, tiny, run, *long) as launched:
        launched.until_trained()
        launched.ctrl_c()
        left_with, said = launched.wait()  # until the trainers too have closed their output
    assert left_with == code
    assert "Traceback" not in said
    assert "Warning" not in said
    assert said.count("received SIGINT: saving and stopping") == 1
    assert said.count("saved and stopped after step") == 1
    stop = read_metrics(run, "stop")[-1]
    assert (stop["reason"], stop["saved"]) == ("received SIGINT", True)
    assert stop["samples_seen"] == steps_saved(run)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["cpu", "cpu_2proc"])
def test_ctrl_c_before_training_shows_no_traceback(tiny, config):
    run = tiny / f"ctrl-c-early-{config}"
    with Launched(config, tiny, run) as launched:
        said = launched.process.stdout.readline()
        assert "importing" in said
        launched.ctrl_c()
        code, rest = launched.wait()
    assert code in {-signal.SIGTERM, -signal.SIGKILL}
    assert "Traceback" not in rest
    assert "interrupted" in rest
    assert not (run / "checkpoints").exists()


@pytest.mark.slow
def test_a_launcher_ends_both_ranks_where_one_is_killed_and_passes_signals_on(tiny, trainers):
    run, long = tiny / "launched-ranks", ("--epochs", "5000")
    with Launched("cpu_2proc", tiny, run, *long) as launched:
        launched.until_trained()
        wait_until(lambda: steps_saved(run))
        killed = time.monotonic()
        os.kill(launched.ranks()[1], signal.SIGKILL)  # the other one ends, too
        code, _ = launched.wait()
    assert code == 1  # the launcher's word for any end but a good one
    assert time.monotonic() - killed < 60

    at = steps_saved(run)[-1] // 8
    trainers.train(tiny, run, *long, "--stop-at-step", str(at + 3))
    assert steps_saved(run)[-1] // 8 == at + 3

    with Launched("cpu_2proc", tiny, run, *long) as launched:
        launched.until_trained()
        launched.process.send_signal(signal.SIGTERM)  # which tells both
        code, said = launched.wait()
    assert code == 1
    assert "saved and stopped" in said
    stop = read_metrics(run, "stop")[-1]
    assert stop["reason"] == "received SIGTERM"
    assert stop["samples_seen"] == steps_saved(run)[-1]
    assert [line["world_size"] for line in read_metrics(run, "start")] == [2, 1, 2]
