"""Packing that is cut short: by SIGKILL, Ctrl-C, a full disk, a bad picture."""

import errno
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

from imagenet_rn50.errors import InputError
from imagenet_rn50.shards import packing
from imagenet_rn50.shards.options import PackOptions
from imagenet_rn50.shards.packing import pack
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.shards.state import PackingState
from imagenet_rn50.shards.tar import TarWriter
from imagenet_rn50.shards.workers import make_shards
from tests.shards.helpers import contents, jpeg, write_kaggle, write_parquet

SCRIPT = Path(__file__).parents[2] / "shard_imagenet.py"
WORDS = ("--train-shards", "12", "--validation-shards", "2", "--workers", "2")

# A disk that takes its time, so that packing is met on the way however busy the machine is.
SLOW_DISK = """
import os, time
fsync = os.fsync
os.fsync = lambda descriptor: (time.sleep(0.5), fsync(descriptor))
"""


def start(source: Path, out: Path, *words: str, **environment: str):
    """Starts packing in a session of its own, so that all its processes can be counted."""
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
    """Returns the environment in which Python writes to one."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW_DISK)
    return {"PYTHONPATH": str(tmp_path / "slow")}


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    """Returns the files that an undisturbed run makes, and how long it takes in seconds."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    begin = time.monotonic()
    process = start(source, out)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return contents(out), time.monotonic() - begin


def kill_and_go_on(source, out, undisturbed, moments):
    """Kills run after run; checks what is there after each, and that the last one completes it."""
    whole, _ = undisturbed
    num_interrupted = 0
    for moment in moments:
        process = start(source, out)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            num_interrupted += 1
        process.kill()
        process.communicate(timeout=60)
        wait_until_all_are_gone(process.pid)
        present = contents(out) if out.exists() else {}
        visible = {name: c for name, c in present.items() if not name.endswith(".partial")}
        assert all(whole[name] == content for name, content in visible.items())
    process = start(source, out)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert contents(out) == whole
    assert not (out / ".packing").exists()
    return num_interrupted


@pytest.mark.multiprocess
def test_killed_at_random_moments_and_run_again_gives_the_same_bytes(source, undisturbed, tmp_path):
    rng = random.Random(1)
    moments = [rng.uniform(0.2, 1.0) * undisturbed[1] for _ in range(3)]
    assert kill_and_go_on(source, tmp_path / "out", undisturbed, moments) > 0


@pytest.mark.slow
@pytest.mark.multiprocess
@settings(max_examples=8, deadline=None)
@given(shares=st.lists(st.floats(0.02, 1.1), min_size=1, max_size=6))
def test_soak_killed_at_any_moments_and_run_again_gives_the_same_bytes(
    source, undisturbed, tmp_path_factory, shares
):
    moments = [share * undisturbed[1] for share in shares]
    kill_and_go_on(source, tmp_path_factory.mktemp("soak") / "out", undisturbed, moments)


@pytest.mark.multiprocess
def test_ctrl_c_says_how_to_go_on_leaves_no_half_file_and_no_process(
    source, undisturbed, slow_disk, tmp_path
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
    assert "the same command goes on from there" in output
    assert "Traceback" not in output
    assert not list(out.glob("*.partial"))
    process = start(source, out)
    output, _ = process.communicate(timeout=120)
    assert "shards were finished before and are kept" in output
    assert contents(out) == undisturbed[0]


def test_ctrl_c_in_the_last_step_too_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    source = read_source(write_kaggle(tmp_path / "source"))
    with monkeypatch.context() as patch:
        patch.setattr(packing, "finish", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack(source, tmp_path / "out", PackOptions(train_shards=2, validation_shards=1))
    assert "3 of 3 shards are finished and kept" in capsys.readouterr().out
    assert pack(source, tmp_path / "out", PackOptions(train_shards=2, validation_shards=1)).num_kept


@pytest.mark.multiprocess
def test_a_worker_that_is_killed_stops_the_run_with_a_message(
    source, undisturbed, slow_disk, tmp_path
):
    out = tmp_path / "out"
    process = start(source, out, **slow_disk)
    while not (workers := list(out.glob("*.partial"))):
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(int(workers[0].name.split(".")[-2]), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "a worker process was killed from outside" in output
    wait_until_all_are_gone(process.pid)
    process = start(source, out)
    process.communicate(timeout=120)
    assert contents(out) == undisturbed[0]


@settings(max_examples=15, deadline=None)
@given(order=st.randoms(use_true_random=False), seed=st.integers(0, 9), shards=st.integers(1, 7))
def test_the_order_in_which_shards_are_finished_changes_no_byte(
    tmp_path_factory, order, seed, shards
):
    folder = tmp_path_factory.mktemp("order")
    source = read_source(write_kaggle(folder / "source"))
    options = PackOptions(seed=seed, train_shards=shards, validation_shards=min(shards, 6))
    pack(source, folder / "one", options)

    def shuffled(tasks, *arguments):
        yield from make_shards(order.sample(tasks, len(tasks)), *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "make_shards", shuffled)
        pack(source, folder / "other", options)
    assert contents(folder / "one") == contents(folder / "other")


@pytest.mark.multiprocess
@settings(max_examples=3, deadline=None)
@given(workers=st.integers(2, 3), seed=st.integers(0, 9), shards=st.integers(2, 7))
def test_the_number_of_workers_changes_no_byte(tmp_path_factory, workers, seed, shards):
    folder = tmp_path_factory.mktemp("workers")
    source = read_source(write_kaggle(folder / "source"))
    options = PackOptions(seed=seed, train_shards=shards, metadata=seed % 2 == 0)
    pack(source, folder / "one", options)
    pack(source, folder / "many", options, num_workers=workers)
    assert contents(folder / "one") == contents(folder / "many")


class FullDisk:
    """A tar writer on a disk that holds so many bytes and no more."""

    def __init__(self, num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = num_bytes
        real = TarWriter._write

        def write(tar, content):
            self.left -= len(content)
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(tar, content)

        monkeypatch.setattr(TarWriter, "_write", write)


def interrupted(source, out, options, num_bytes=12_000):
    """Leaves the beginning of a packing behind."""
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(num_bytes, patch)
        with pytest.raises(InputError, match="the disk is full"):
            pack(source, out, options)


def test_a_disk_that_fills_up_stops_cleanly_and_the_next_run_goes_on(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    options = PackOptions(train_shards=6, validation_shards=2)
    pack(source, tmp_path / "whole", options)
    out = tmp_path / "out"
    interrupted(source, out, options)
    finished = [path.name for path in out.glob("*.tar")]
    assert 0 < len(finished) < 8
    assert not list(out.glob("*.partial"))
    packed = pack(source, out, options)
    assert packed.num_kept == len(finished)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_shard_that_was_damaged_meanwhile_is_made_again(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    options = PackOptions(train_shards=6)
    pack(source, tmp_path / "whole", options)
    interrupted(source, tmp_path / "out", options)
    path = sorted((tmp_path / "out").glob("*.tar"))[0]
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(bytes(content))
    pack(source, tmp_path / "out", options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_parquet_is_read_again_for_the_missing_shards_only(tmp_path):
    source = read_source(write_parquet(tmp_path / "source"))
    options = PackOptions(train_shards=6)
    pack(source, tmp_path / "whole", options)
    interrupted(source, tmp_path / "out", options)
    finished = len(list((tmp_path / "out").glob("*.tar")))
    assert len(list((tmp_path / "out").rglob("*.spool"))) == 7 - finished
    assert pack(source, tmp_path / "out", options).num_kept == finished
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out" / ".packing").exists()


def test_a_run_that_was_killed_between_manifest_and_tidying_up_is_tidied_up(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackingState, "forget", lambda self: None)
        pack(source, tmp_path / "out", PackOptions())
    assert (tmp_path / "out" / ".packing").is_dir()
    assert pack(source, tmp_path / "out", PackOptions()).num_made == 0
    assert not (tmp_path / "out" / ".packing").exists()


def test_the_beginning_of_another_packing_is_not_mixed_in(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    interrupted(source, tmp_path / "out", PackOptions(train_shards=6))
    with pytest.raises(InputError, match="seed was 0, now 1"):
        pack(source, tmp_path / "out", PackOptions(train_shards=6, seed=1))


def test_a_finished_output_of_other_options_is_left_alone(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    pack(source, tmp_path / "out", PackOptions())
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="seed was 0, now 1"):
        pack(source, tmp_path / "out", PackOptions(seed=1))
    assert contents(tmp_path / "out") == before


def test_a_source_that_changed_since_is_noticed(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    pack(source, tmp_path / "out", PackOptions())
    first = source.splits["train"][0]
    (source.root / first.path).write_bytes(jpeg(99, size=(50, 50)))
    with pytest.raises(InputError, match="source_sha256 was"):
        pack(read_source(source.root), tmp_path / "out", PackOptions())


def test_shards_of_unknown_origin_are_not_written_over(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    pack(source, tmp_path / "out", PackOptions())
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"holds imagenet1k-train-00\.tar already"):
        pack(source, tmp_path / "out", PackOptions())


def test_a_second_process_may_not_pack_into_the_same_folder(source, tmp_path):
    process = start(source, tmp_path / "out")
    while not (tmp_path / "out" / ".packing" / "plan.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # so that it is there, however long the second takes
    second = start(source, tmp_path / "out")
    output, _ = second.communicate(timeout=60)
    process.send_signal(signal.SIGCONT)
    assert second.returncode == 2, output
    assert "another process is packing into" in output
    process.communicate(timeout=120)
    assert process.returncode == 0
