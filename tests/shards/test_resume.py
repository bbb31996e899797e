"""Packing that is cut short: by SIGKILL, Ctrl-C, a full disk, a bad image."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shard_imagenet
from imagenet_rn50.shards import pack as packing
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from tests.shards.helpers import contents, write_kaggle

SCRIPT = Path(__file__).parents[2] / "shard_imagenet.py"
WORDS = ("--train-shards", "12", "--validation-shards", "2", "--workers", "2")

# A disk that takes its time, so that packing is met on the way however busy the machine is.
SLOW_DISK = """
import os, time
fsync = os.fsync
os.fsync = lambda descriptor: (time.sleep(0.5), fsync(descriptor))
"""


def start(source: Path, out: Path, *words: str, **environment: str):
    """Start packing in a session of its own, so that all its processes can be counted."""
    command = [sys.executable, str(SCRIPT), "pack", "--source", str(source), "--out", str(out)]
    return subprocess.Popen(
        [*command, *WORDS, *words],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def wait_until_all_are_gone(group: int) -> None:
    """Waits until no process of a session is left."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError("workers outlive their parent")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_kaggle(tmp_path_factory.mktemp("source") / "it", train=180, validation=24)


@pytest.fixture
def slow_disk(tmp_path):
    """Return the environment in which Python writes to one."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW_DISK)
    return {"PYTHONPATH": str(tmp_path / "slow")}


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    """Return the files that an undisturbed run makes."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    complete(source, out)
    return contents(out)


def complete(source: Path, out: Path) -> None:
    """Pack what is missing, in this process: starting three takes seconds."""
    options = PackOptions(train_shards=12, validation_shards=2, restart_blocks="auto")
    pack(read_source(source), out, options)


def wait_for_shards(process, out, number: int) -> None:
    """Wait until so many shards are finished, or the process has ended."""
    while process.poll() is None and len(list(out.glob(".packing/*.tar.json"))) < number:
        time.sleep(0.002)


def kill_and_go_on(source, out, undisturbed, moments):
    """Kill run after run; check what is there after each, and that the last one completes it.

    Args:
        source: What is packed.
        out: Into which folder.
        undisturbed: The files that are to be there at the end.
        moments: For each run to kill, how many shards it finds or finishes first, and how many
            seconds it has from then on.
    """
    num_interrupted = 0
    for number, seconds in moments:
        process = start(source, out)
        wait_for_shards(process, out, number)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            num_interrupted += 1
        process.kill()
        process.communicate(timeout=60)
        wait_until_all_are_gone(process.pid)
        present = contents(out) if out.exists() else {}
        visible = {name: c for name, c in present.items() if not name.endswith(".partial")}
        assert all(undisturbed[name] == content for name, content in visible.items())
    process = start(source, out)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert contents(out) == undisturbed
    assert not (out / ".packing").exists()
    return num_interrupted


@pytest.mark.multiprocess
def test_killed_at_random_moments_and_run_again_gives_the_same_bytes(source, undisturbed, tmp_path):
    rng = random.Random(1)
    moments = [(rng.randint(*some), rng.uniform(0, 0.05)) for some in ((1, 5), (6, 11))]
    assert kill_and_go_on(source, tmp_path / "out", undisturbed, moments) > 0


@pytest.mark.slow
@pytest.mark.multiprocess
@settings(max_examples=8, deadline=None)
@given(moments=st.lists(st.tuples(st.integers(0, 13), st.floats(0, 1)), min_size=1, max_size=6))
def test_soak_killed_at_any_moments_and_run_again_gives_the_same_bytes(
    source, undisturbed, tmp_path_factory, moments
):
    kill_and_go_on(source, tmp_path_factory.mktemp("soak") / "out", undisturbed, moments)


@pytest.mark.multiprocess
def test_ctrl_c_says_how_to_resume_leaves_no_half_file_and_no_process(
    source, undisturbed, slow_disk, tmp_path, capsys
):
    out = tmp_path / "out"
    process = start(source, out, **slow_disk)
    while not list(out.glob(".packing/*.tar.json")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    output, _ = process.communicate(timeout=60)
    wait_until_all_are_gone(process.pid)
    assert process.returncode == 130, output
    assert "shards are finished and kept" in output
    assert "run the same command again to resume" in output
    assert "Traceback" not in output
    assert not list(out.glob("*.partial"))
    complete(source, out)
    assert "shards were finished before and are kept" in capsys.readouterr().out
    assert contents(out) == undisturbed


def test_ctrl_c_in_the_last_step_too_says_how_to_resume(tmp_path, monkeypatch, capsys):
    source = read_source(write_kaggle(tmp_path / "source"))
    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_manifest", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack(source, tmp_path / "out", PackOptions(train_shards=2, validation_shards=1))
    assert "3 of 3 shards are finished and kept" in capsys.readouterr().out
    assert pack(source, tmp_path / "out", PackOptions(train_shards=2, validation_shards=1)).num_kept


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_stops_the_run_with_a_message(
    number, source, undisturbed, slow_disk, tmp_path
):
    out = tmp_path / "out"
    process = start(source, out, **slow_disk)
    while not (workers := list(out.glob("*.partial"))):
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(int(workers[0].name.split(".")[-2]), number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "a worker process was killed from outside" in output
    wait_until_all_are_gone(process.pid)
    complete(source, out)
    assert contents(out) == undisturbed


def test_a_second_process_may_not_pack_into_the_same_folder(source, tmp_path, refused):
    process = start(source, tmp_path / "out", "--workers", "1")
    while not (tmp_path / "out" / ".packing" / "plan.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # so that it is there, however long the second takes
    words = ("pack", "--source", source, "--out", tmp_path / "out", *WORDS)
    told = refused(shard_imagenet.main, *words)
    process.send_signal(signal.SIGCONT)
    assert "another process is packing into" in told
    process.communicate(timeout=120)
    assert process.returncode == 0
