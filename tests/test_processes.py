import os
import sys

from imagenet_rn50 import processes
from imagenet_rn50.processes import Launcher, typed_command


def test_the_command_to_go_on_is_the_launchers_as_it_was_typed(monkeypatch):
    words = ("/venv/bin/python3", "/venv/bin/accelerate", "launch", "train.py", "--run", "a b")
    typed = Launcher(words, (("ACCELERATE_USE_CPU", "1"),))
    monkeypatch.setattr(processes, "launcher", lambda: typed)
    assert typed_command() == "ACCELERATE_USE_CPU=1 accelerate launch train.py --run 'a b'"


def test_an_option_that_has_done_its_work_is_left_out_of_it(monkeypatch):
    monkeypatch.setattr(processes, "launcher", lambda: Launcher((), ()))
    for given in (["--stop-at-step", "3"], ["--stop-at-step=3"], ["--stop_at_step", "3"]):
        monkeypatch.setattr(sys, "argv", ["train.py", "--run", "x", *given, "--workers", "1"])
        command = typed_command(without="--stop-at-step")
        assert command == "python train.py --run x --workers 1"


def test_a_parent_that_is_no_launcher_is_not_taken_for_one():
    processes.launcher.cache_clear()
    assert os.getppid() > 0
    assert processes.launcher().words == ()
