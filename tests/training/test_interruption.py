"""Trainers that are told to end, or are killed, and what becomes of their runs."""

import contextlib
import http.server
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from imagenet_rn50.loading.order import TrainingOrder
from imagenet_rn50.runs.checkpoints import newest_checkpoint
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.shards.manifest import TRAIN, Manifest
from imagenet_rn50.training.seen import hash_of_samples, wrapped
from tests.support import write_recipe, write_shards
from tests.training.trainers import (
    PATIENCE_S,
    ROOT,
    hashes,
    lines_of,
    measured,
    steps_saved,
    wait_until,
)

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file"]
EXIT_INTERRUPTED = 75

# Long enough to be met in the middle, and with everything that a checkpoint must hold.
RECIPE = """\
epochs: 10
global_batch: 8
micro_batch: 4
ema_decay: 0.9
mixup_alpha: 0.2
model: {embedding_size: 16, hidden_sizes: [16, 16], depths: [1, 1], layer_type: basic}
data: {train_size: 32, eval_size: 32, eval_resize: 36, shuffle_window: 2}
optimizer: {lr: 0.05}
schedule: {name: constant, warmup_epochs: 1.0, plateau_patience: 1, plateau_threshold: 0.9}
"""
NUM_TRAIN, NUM_EPOCHS = 83, 10  # 104 steps

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_shards(folder / "shards", train=[30, 31, 22], validation=[6, 15])
    write_recipe(folder, RECIPE)
    return folder


@pytest.fixture(scope="module")
def finished(tiny, trainers):
    """A run that nothing disturbed."""
    run = tiny / "undisturbed"
    trainers.train(tiny, run)
    return run


def assert_same_run(run, other):
    assert hashes(run) == hashes(other)
    assert measured(run) == measured(other)


def test_each_signal_saves_and_ends_and_the_run_goes_on_to_the_same_weights(
    tiny, trainers, finished
):
    run = tiny / "signalled"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        trainer = trainers.start(tiny, run).until_trained()
        trainer.send(number)
        assert trainer.wait() == EXIT_INTERRUPTED, trainer.said()
        assert f"(received {number.name}). To go on:\n" in trainer.said()
        assert f"python train_accelerate.py --recipe {tiny / 'tiny.yaml'}" in trainer.said()
        stop = read_metrics(run, "stop")[-1]
        assert stop["reason"] == f"received {number.name}"
        assert stop["samples_seen"] == steps_saved(run)[-1] < NUM_EPOCHS * NUM_TRAIN
    trainers.train(tiny, run)
    assert_same_run(run, finished)


def kill_and_go_on(tiny, trainers, run, num_kills, seed):
    """Kills trainers that save after each step and keep one checkpoint; returns when."""
    draw = random.Random(seed)
    always_saving = ("--checkpoint-steps", "1", "--keep-last", "1", "--workers", "0")
    places = []
    for _ in range(num_kills):
        before = steps_saved(run)
        trainer = trainers.start(tiny, run, *always_saving)
        trainer.until(lambda before=before: steps_saved(run)[-1:] > before[-1:])
        time.sleep(draw.uniform(0, draw.choice((0.05, 0.5))))
        trainer.kill()
        places.append(steps_saved(run))
        newest = newest_checkpoint(run / "checkpoints")
        assert newest is not None
        assert newest.samples_seen >= max(before, default=0)
    trainers.train(tiny, run, *always_saving)
    return places


def test_kills_while_saving_and_pruning_lose_nothing(tiny, trainers, finished):
    run = tiny / "killed"
    kill_and_go_on(tiny, trainers, run, num_kills=3, seed=0)
    assert_same_run(run, finished)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_kills_at_random_moments_lose_nothing(tiny, trainers, finished):
    num_kills = 0
    for seed in range(8):
        run = tiny / f"soak-{seed}"
        places = kill_and_go_on(tiny, trainers, run, num_kills=5, seed=seed)
        assert_same_run(run, finished)
        num_kills += len(places)
        print(f"run {seed}: 5 kills, checkpoints left by each: {places}")
    print(f"{num_kills} kills: every run went on to the same weights")
    assert num_kills >= 30


def test_a_full_disk_leaves_the_old_checkpoint_and_is_told(tiny, trainers, finished):
    run = tiny / "full"
    in_process = ("--workers", "0")  # shared memory counts as files
    trainers.train(tiny, run, "--stop-at-step", "3")
    small = 40_000  # bytes a file may have: enough for the journal, too little for the weights
    said = trainers.train(tiny, run, *in_process, code=1, largest_file=small)
    assert "could not be saved" in said
    assert "the last checkpoint could not be saved; the one before it stands" in said
    assert steps_saved(run) == [24]
    assert {line["failed"] is None for line in read_metrics(run, "checkpoint")[1:]} == {False}
    trainers.train(tiny, run)
    assert_same_run(run, finished)


class Metadata(http.server.BaseHTTPRequestHandler):
    """Speaks as EC2's instance metadata service does, version 2."""

    notice: str | None = None
    tokens = ["first", "second"]
    asked: list[str] = []

    def do_PUT(self):
        assert self.path == "/latest/api/token"
        assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
        self._answer(200, self.tokens[0])

    def do_GET(self):
        assert self.path == "/latest/meta-data/spot/instance-action"
        token = self.headers["X-aws-ec2-metadata-token"]
        Metadata.asked.append(token)
        if token != self.tokens[0]:
            self._answer(401, "")
        elif Metadata.notice is None:
            self._answer(404, "")
        else:
            self._answer(200, Metadata.notice)

    def log_message(self, *arguments):
        pass

    def _answer(self, code, text):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def metadata_service():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_ec2s_notice_saves_within_seconds(tiny, trainers, metadata_service):
    run = tiny / "spot"
    more = ("--epochs", "20000", "--spot", "on")
    trainer = trainers.start(tiny, run, *more, AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata_service)
    trainer.until_trained()
    Metadata.tokens.pop(0)  # the one in use is withdrawn
    Metadata.notice = json.dumps({"action": "terminate", "time": "2030-01-02T03:04:05Z"})
    announced = time.monotonic()
    assert trainer.wait() == EXIT_INTERRUPTED, trainer.said()
    assert time.monotonic() - announced < 30
    assert Metadata.asked[-2:] == ["first", "second"]
    reason = "EC2 announces: terminate at 2030-01-02T03:04:05Z"
    assert read_metrics(run, "stop")[-1]["reason"] == reason
    assert newest_checkpoint(run / "checkpoints") is not None


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

    def ranks(self):
        """Returns the process ids of the trainers, by rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid:
                    variables = (folder / "environ").read_text().split("\0")
                    values = dict(entry.partition("=")[::2] for entry in variables)
                    found[int(values.get("RANK", "0"))] = int(folder.name)
            except (OSError, ValueError):
                continue
        return found

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
    wait_until(lambda: not Path(f"/proc/{trainer}").exists())
    assert read_metrics(run, "stop")[-1]["reason"] == "the launcher has ended"
    assert "ACCELERATE_USE_CPU=1 python -m accelerate.commands.launch --quiet --config_file" in said
    stopped_at = read_metrics(run, "stop")[-1]["samples_seen"]
    assert stopped_at == steps_saved(run)[-1] < NUM_EPOCHS * NUM_TRAIN
    trainers.train(tiny, run)
    assert_same_run(run, finished)


def test_two_ranks_then_one_then_two_see_the_samples_of_the_order_and_no_others(tiny, trainers):
    run, long = tiny / "ranks", ("--epochs", "5000")
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
        os.kill(launched.ranks()[1], signal.SIGTERM)  # one of two, and not the one that writes
        code, said = launched.wait()
    assert code == 1
    assert "saved and ended" in said
    stop = read_metrics(run, "stop")[-1]
    assert stop["reason"] == "a signal to another rank"
    assert stop["samples_seen"] == steps_saved(run)[-1]
    assert [line["world_size"] for line in read_metrics(run, "start")] == [2, 1, 2]

    train = Manifest.load(tiny / "shards").split(TRAIN)
    order = TrainingOrder(train.shard_sizes, seed=0, window=2)
    _, indices = order.at(0, stop["samples_seen"])
    expected = wrapped(hash_of_samples(0, torch.from_numpy(indices)))
    assert read_metrics(run, "train")[-1]["samples_hash"] == f"{expected:016x}"
    validated = [line["samples_seen"] for line in read_metrics(run, "validation")]
    assert validated == sorted(set(validated))


def test_a_second_signal_ends_at_once_even_while_the_main_thread_waits_in_c():
    code = (
        "import ctypes; from imagenet_rn50.training.interruption import Interruption\n"
        "with Interruption(talks=True):\n"
        "    print('ready', flush=True)\n"
        "    ctypes.CDLL(None).pause(); ctypes.CDLL(None).sleep(600)\n"
        "    [ctypes.PyDLL(None).getpid() or ctypes.CDLL(None).sleep(600) for _ in range(9)]\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(3):  # what launchers and terminals send again at once is no second signal
        process.send_signal(signal.SIGTERM)
    assert "received SIGTERM" in process.stdout.readline()
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGTERM
