"""The proof of a resume, from its own command to its verdict."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from imagenet_rn50.runs.metrics import MetricsLogger
from imagenet_rn50.tools import prove_resume
from imagenet_rn50.tools.prove_resume import Proof
from imagenet_rn50.utils.errors import InputError
from tests.training.trainers import ROOT, lines_of, steps_saved

pytestmark = pytest.mark.multiprocess
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file")


def trainers_of(run):
    """Returns the processes that train in a folder."""
    processes = psutil.process_iter(["cmdline"])
    return [p.pid for p in processes if str(run) in (p.info["cmdline"] or ())]


def members_of(group):
    """Returns the processes of a group, apart from those that are dead."""
    found = []
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def assert_killed_without_a_word(run, processes):
    """What was killed is gone, and none of it had time to save and to say so."""
    deadline = time.monotonic() + 1  # for the kernel
    while processes() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not processes()
    assert lines_of(run, "train")
    assert not lines_of(run, "stop")


def prove(proof, folder, train, monkeypatch, processes=None):
    """Proves, and looks at the twin between its kill and the command that goes on.

    `processes` returns those of the twin that live; by default all whose command line has its run.
    """

    def look_and_train(command):
        run = folder / "resumed"
        if run.exists():
            assert_killed_without_a_word(run, processes or (lambda: trainers_of(run)))
        train(command)

    monkeypatch.setattr(prove_resume, "_train", look_and_train)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return prove_resume.prove_resume(proof, folder)


def test_a_killed_training_is_proved_to_go_on_to_the_same_bits(
    tiny, trainers, tmp_path, monkeypatch, capsys
):
    recipe, shards, folder = tiny / "tiny.yaml", tiny / "shards", tmp_path / "both"
    started = []

    def start(command):  # forked: it starts at once
        trainer = trainers.start_as_told(command[1:], folder)
        started.append(trainer.pid)
        return trainer

    def train(command):
        trainer = start(command)
        assert trainer.wait() == 0, trainer.said()

    def popen(command, **_):
        trainer = start(command)
        return SimpleNamespace(
            pid=trainer.pid,
            wait=trainer.wait,
            poll=lambda: None if trainer.pid in members_of(trainer.pid) else 1,
        )

    places = {"Popen": popen, "DEVNULL": subprocess.DEVNULL}
    monkeypatch.setattr(prove_resume, "subprocess", SimpleNamespace(**places))
    proof = Proof(str(recipe), str(shards), 10, (sys.executable,), ("--workers", "1"))
    assert prove(proof, folder, train, monkeypatch, lambda: members_of(started[1]))
    assert len(started) == 3
    assert "Bit-identical after each of these steps" in capsys.readouterr().out
    saved = steps_saved(folder / "resumed")
    assert saved == steps_saved(folder / "uninterrupted")
    assert {80, 120, 160} <= set(saved)

    shutil.rmtree(folder / "resumed" / "checkpoints" / "samples-000000080")
    assert not prove_resume.compare(folder / "uninterrupted", folder / "resumed")
    said = capsys.readouterr().out
    assert "saved at different steps" in said
    assert "DIFFERENT" not in said


# A launcher that writes of the steps of its rank, which has a session of its own.
LAUNCHER = """\
import json, pathlib, signal, subprocess, sys, time
run, rank = pathlib.Path(sys.argv[sys.argv.index("--run") + 1]), "rank" in sys.argv
def line(kind, step):
    with (run / "metrics.jsonl").open("a") as journal:
        print(json.dumps({"kind": kind, "samples_seen": 8 * step}), file=journal)
if not rank:
    run.mkdir()
    (run / "recipe.yaml").write_text("global_batch: 8\\nmicro_batch: 8")
    subprocess.Popen([sys.executable, "-c", sys.orig_argv[2], "rank", "--run", str(run)],
                     start_new_session=True)
signal.signal(signal.SIGTERM, lambda *_: line("stop", 9))
for step in range(1, 10000):
    if rank:
        line("train", step)
    time.sleep(0.01)
"""


def test_a_twin_is_killed_with_all_its_processes_and_none_can_save(tmp_path, monkeypatch):
    def train(command):
        run = Path(command[command.index("--run") + 1])
        run.mkdir(parents=True, exist_ok=True)
        with closing(MetricsLogger(run, 800)) as journal:
            journal.write("start", 0, 0.0)

    proof = Proof("digits", "shards", 3, (sys.executable, "-c", LAUNCHER), ())
    with pytest.raises(InputError, match="nothing was resumed"):
        prove(proof, tmp_path / "both", train, monkeypatch)


def test_a_twin_that_was_killed_before_its_first_save_proves_nothing(tmp_path, monkeypatch, capsys):
    def train(command):
        with closing(MetricsLogger(Path(command[command.index("--run") + 1]), 0)) as journal:
            journal.write("start", 0, 0.0)

    (tmp_path / "both" / "uninterrupted").mkdir(parents=True)
    monkeypatch.setattr(prove_resume, "_runs_folder", lambda folder: nullcontext(folder))
    monkeypatch.setattr(prove_resume, "_train", train)
    monkeypatch.setattr(prove_resume, "_train_and_kill", lambda proof, run: run.mkdir())
    with pytest.raises(InputError, match="nothing was resumed"):
        prove_resume.prove_resume(Proof("digits", "shards", 1, (), ()), tmp_path / "both")
    assert "Bit-identical" not in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "enough"), [(1, 1), (2, 2), (3, 3), (5, 4), (7, 6), (20, 20)])
def test_the_kill_comes_after_as_many_steps_as_are_told(steps, enough):
    assert Proof("digits", "shards", steps, (), ()).kill_step == enough


@pytest.mark.slow
def test_under_a_launcher_of_two_every_rank_is_killed_and_none_saves(
    tiny, tmp_path, monkeypatch, capsys
):
    launcher = (*LAUNCH, str(ROOT / "accelerate_configs" / "cpu_2proc.yaml"))
    options = ("--workers", "1", "--epochs", "5000")
    proof = Proof(str(tiny / "tiny.yaml"), str(tiny / "shards"), 100, launcher, options)
    assert prove(proof, tmp_path / "both", prove_resume._train, monkeypatch)
    assert "Bit-identical" in capsys.readouterr().out
