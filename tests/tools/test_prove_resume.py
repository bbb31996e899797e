"""The proof of a resume, from its own command to its verdict."""

import shutil
import sys
import time
from contextlib import closing, nullcontext
from pathlib import Path

import psutil
import pytest

from imagenet_rn50.runs.metrics import MetricsLogger
from imagenet_rn50.tools import prove_resume
from imagenet_rn50.tools.prove_resume import Proof
from imagenet_rn50.utils.errors import InputError
from tests.training.trainers import ROOT, Trainer, lines_of, steps_saved

pytestmark = pytest.mark.multiprocess
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file")


def trainers_of(run):
    """Returns the processes that train in a folder."""
    processes = psutil.process_iter(["cmdline"])
    return [p.pid for p in processes if str(run) in (p.info["cmdline"] or ())]


def assert_killed_without_a_word(run):
    """What was killed is gone, and none of it had time to save and to say so."""
    deadline = time.monotonic() + 1  # for the kernel
    while trainers_of(run) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not trainers_of(run)
    assert lines_of(run, "train")
    assert not lines_of(run, "stop")


def prove(proof, folder, train, monkeypatch):
    """Proves, and looks at the twin between its kill and the command that goes on."""

    def look_and_train(command):
        if (folder / "resumed").exists():
            assert_killed_without_a_word(folder / "resumed")
        train(command)

    monkeypatch.setattr(prove_resume, "_train", look_and_train)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return prove_resume.prove_resume(proof, folder)


def test_a_killed_training_is_proved_to_go_on_to_the_same_bits(
    tiny, trainers, tmp_path, monkeypatch, capsys
):
    def train(command):  # what is not killed is forked: it starts at once
        log = tmp_path / "log"
        log.touch()
        order = {
            "words": command[1:],
            "log": str(log),
            "limit": None,
            "plots": False,
            "environment": {},
        }
        pid = trainers.ask(order)
        assert Trainer(trainers, pid, log, folder, 0).wait() == 0, log.read_text()

    recipe, shards, folder = tiny / "tiny.yaml", tiny / "shards", tmp_path / "both"
    proof = Proof(str(recipe), str(shards), 20, (sys.executable,), ("--workers", "1"))
    assert prove(proof, folder, train, monkeypatch)
    assert "Bit-identical after each of these steps" in capsys.readouterr().out
    saved = steps_saved(folder / "resumed")
    assert saved == steps_saved(folder / "uninterrupted")
    assert {160, 240, 320} <= set(saved)

    shutil.rmtree(folder / "resumed" / "checkpoints" / "samples-000000160")
    assert not prove_resume.compare(folder / "uninterrupted", folder / "resumed")
    said = capsys.readouterr().out
    assert "saved at different steps" in said
    assert "DIFFERENT" not in said


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
