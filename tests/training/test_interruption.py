"""Trainers that are told to end, or are killed, and what becomes of their runs."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imagenet_rn50.runs.checkpoint import newest_checkpoint
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.shards.subset import Selection, subset
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

pytestmark = pytest.mark.multiprocess


def test_each_signal_saves_and_ends_and_the_run_goes_on_to_the_same_weights(
    tiny, trainers, finished
):
    run = tiny / "signalled"
    options = ("--workers", "1", "--checkpoint-steps", "2")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        trainer = trainers.start(tiny, run, *options).until_trained()
        trainer.send(number)
        assert trainer.wait() == EXIT_INTERRUPTED, trainer.said()
        assert f"(received {number.name})" in trainer.said()
        assert f"python train_accelerate.py --recipe {tiny / 'tiny.yaml'}" in trainer.said()
        stop = read_metrics(run, "stop")[-1]
        assert stop["reason"] == f"received {number.name}"
        assert stop["samples_seen"] == steps_saved(run)[-1] < NUM_EPOCHS * NUM_TRAIN
    assert (run / "plots" / "loss.png").is_file()
    trainers.train(tiny, run)
    assert_same_run(run, finished)


def kill_and_go_on(tiny, trainers, run, num_kills, seed):
    """Kills trainers that save after each step and keep one checkpoint, then lets one finish.

    Returns when they were killed.
    """
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
    trainers.train(tiny, run)
    return places


def test_kills_while_saving_and_pruning_lose_nothing(tiny, trainers, finished):
    run = tiny / "killed"
    kill_and_go_on(tiny, trainers, run, num_kills=3, seed=0)
    assert_same_run(run, finished)


def test_a_killed_run_over_a_subset_of_shards_elsewhere_resumes_to_the_same_weights(
    tiny, trainers, tmp_path
):
    selection = Selection(images_per_class=8, holdout=0.2, train_only=True)
    manifest = subset(str(tiny / "shards"), tmp_path / "shards", selection)
    shutil.copy(tiny / "tiny.yaml", tmp_path)
    trainers.train(tmp_path, tmp_path / "undisturbed")
    run = tmp_path / "killed"
    trainer = trainers.start(tmp_path, run, "--checkpoint-steps", "1")
    trainer.until(lambda: steps_saved(run)).kill()
    trainers.train(tmp_path, run)
    assert_same_run(run, tmp_path / "undisturbed")
    assert read_metrics(run, "train")[-1]["samples_seen"] == NUM_EPOCHS * 24
    num_held_out = manifest.split("validation").num_samples
    assert read_metrics(run, "validation")[-1]["num_images"] == num_held_out == 9


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
    assert "samples-" in said
    assert "the last checkpoint could not be saved" in said
    assert steps_saved(run) == [24]
    assert {line["failed"] is None for line in read_metrics(run, "checkpoint")[1:]} == {False}
    trainers.train(tiny, run)
    assert_same_run(run, finished)


def test_a_disk_too_full_for_a_line_of_the_journal_is_told_and_the_training_goes_on(tiny, trainers):
    run = tiny / "fuller"
    short = ("--epochs", "2")
    trainers.train(tiny, run, *short, "--stop-at-step", "3")
    journal = run / "metrics.jsonl"
    journal.write_text(journal.read_text() * 200)  # longer than a file may become
    said = trainers.train(tiny, run, *short, "--workers", "0", code=1, largest_file=40_000)
    assert said.count("metrics.jsonl cannot be written") == 1
    assert "the last lines of metrics.jsonl are lost" in said
    assert "the last checkpoint could not be saved" in said


LONG_STEPS = (
    *("--micro-batch", "1", "--global-batch", "40", "--data.train-size", "160"),
    *("--epochs", "2", "--checkpoint-minutes", "0.0001"),
)


def test_both_ranks_abandon_the_step_in_which_one_is_told_to_end(tiny, trainers, tmp_path):
    run = tmp_path / "run"
    ranks = trainers.start_two_ranks(tiny, run, *LONG_STEPS)
    # In the second step all ranks learn that it is time to save, and do so at its end.
    wait_until(lambda: steps_saved(run) == [80], ranks[0].said)
    ranks[1].send(signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [EXIT_INTERRUPTED] * 2, ranks[0].said()
    assert steps_saved(run) == [80]


@pytest.mark.slow
def test_two_ranks_that_abandoned_a_step_resume_to_the_same_bits(tiny, trainers, tmp_path):
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    test_both_ranks_abandon_the_step_in_which_one_is_told_to_end(tiny, trainers, tmp_path)
    trainers.train_on_two_ranks(tiny, run, *LONG_STEPS)
    trainers.train_on_two_ranks(tiny, undisturbed, *LONG_STEPS)
    assert_same_run(run, undisturbed)


@pytest.mark.parametrize("output", ["/dev/full", "broken pipe", "full pipe"])
def test_a_run_whose_output_goes_nowhere_saves_and_ends_when_told(tiny, trainers, tmp_path, output):
    log = Path(output)
    if not log.exists():
        log = tmp_path / "pipe"
        os.mkfifo(log)
        reading = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    run = tmp_path / "run"
    trainer = trainers.start(tiny, run, "--epochs", "5000", log=log)
    wait_until(lambda: lines_of(run, "train"))
    if output == "full pipe":
        writing = os.open(log, os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x")
    elif output == "broken pipe":
        os.close(reading)
    for _ in range(2):  # at once: no second signal, as launchers and terminals send them
        trainer.send(signal.SIGTERM)
    assert trainer.wait() == EXIT_INTERRUPTED
    assert read_metrics(run, "stop")[-1]["reason"] == "received SIGTERM"
    assert read_metrics(run, "stop")[-1]["samples_seen"] == steps_saved(run)[-1]


def test_a_second_signal_ends_at_once_even_while_the_main_thread_waits_in_c():
    code = (
        "import ctypes; from imagenet_rn50.training.preemption import SignalHandler\n"
        "lock = ctypes.CDLL(None).pthread_mutex_lock\n"
        "mutex = ctypes.create_string_buffer(64)\n"
        "with SignalHandler(verbose=True):\n"
        "    print('ready', flush=True)\n"
        "    lock(mutex), lock(mutex)\n"  # for ever, whatever the signal
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


def test_a_trainer_under_nohup_hears_no_hangup_and_takes_no_shell_for_a_launcher():
    code = (
        "import os, signal, time; from imagenet_rn50.training.preemption import SignalHandler\n"
        "parent = os.getppid()\n"
        "for number in (signal.SIGTERM, signal.SIGUSR1):\n"
        "    with SignalHandler(verbose=False) as interruption:\n"
        "        os.kill(os.getpid(), signal.SIGHUP)\n"
        "        if os.getppid() == parent: os.kill(parent, signal.SIGKILL)\n"
        "        while os.getppid() == parent: time.sleep(0.01)\n"
        "        os.kill(os.getpid(), number)\n"
        "        while not interruption.reason: time.sleep(0.01)\n"
        "    print(interruption.reason)\n"
    )
    shell = ["sh", "-c", 'nohup "$@" & wait', "sh", sys.executable, "-c", code]
    done = subprocess.run(shell, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert done.stdout == "received SIGTERM\nreceived SIGUSR1\n"
