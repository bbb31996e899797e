import os
import sys

import pytest

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


@pytest.mark.parametrize("form", ["--shards {}", "--shards={}"])
def test_secrets_in_addresses_are_left_out_of_it_and_that_is_said(monkeypatch, form):
    monkeypatch.setattr(processes, "launcher", lambda: Launcher((), ()))
    address = "https://user:PASSWORD@host/x?X-Amz-Signature=SECRET#TOKEN"
    given = [*form.format(address).split(), "--sync", "s3://runs/one", "--run", "a b"]
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    expected = f"python train.py {form} --sync s3://runs/one --run 'a b'  (address shortened)"
    assert typed_command() == expected.format("https://host/x")
    monkeypatch.setattr(sys, "argv", ["train.py", "--sync", "s3://runs/one"])
    assert typed_command() == "python train.py --sync s3://runs/one"


def test_a_parent_that_is_no_launcher_is_not_taken_for_one():
    processes.launcher.cache_clear()
    assert os.getppid() > 0
    assert processes.launcher().words == ()
