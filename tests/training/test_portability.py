"""Loading and training without what Linux alone offers: see `tests/without_linux`."""

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import closing

import pytest
import torch

import imagenet_rn50
from imagenet_rn50.data.loader import build_loader
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.data.transforms import TrainTransform
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.utils.signals import STOP_SIGNALS
from tests.shards.helpers import write_kaggle
from tests.support import write_tiny
from tests.training.trainers import EXIT_INTERRUPTED, PATIENCE_S, ROOT, hashes, lines_of, wait_until

DATA = DataRecipe(train_size=16, eval_size=16, eval_resize=18)
WITHOUT_LINUX = str(ROOT / "tests" / "without_linux")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=[pytest.param("spawn", marks=pytest.mark.slow), "forkserver"])
def start_method(request, monkeypatch):
    """Starts processes as other systems do, and without what Linux alone offers."""
    before = multiprocessing.get_start_method()
    monkeypatch.setenv("PYTHONPATH", WITHOUT_LINUX)
    monkeypatch.setenv("START_METHOD", request.param)
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def loader_of(tiny, num_workers):
    train = Manifest.load(tiny / "shards").split("train")
    order = ShardShuffleSampler(train.shard_sizes, seed=3, window=2)
    share, transform = DistributedBatchSampler(0, 42, 6), TrainTransform(DATA, seed=3)
    return build_loader(
        tiny / "shards", train, share, transform, order=order, num_workers=num_workers
    )


@pytest.mark.multiprocess
@pytest.mark.usefixtures("start_method")
def test_workers_that_are_not_forked_load_the_same_and_do_not_hear_ctrl_c(tiny, tmp_path):
    # Packing starts the process's fork server, if there is none.
    source = read_source(write_kaggle(tmp_path / "source"))
    pack(source, tmp_path / "shards", PackOptions(), num_workers=2)
    with closing(loader_of(tiny, num_workers=1)) as loader:
        found = iter(loader)
        first = next(found)
        (worker,) = loader.web_loader.pipeline[0]._iterator._workers
        for number in STOP_SIGNALS:
            os.kill(worker.pid, number)
        loaded = [first, *found]
        assert worker.is_alive()
    alone = list(loader_of(tiny, num_workers=0))
    assert len(loaded) == len(alone) == 7
    for batch, expected in zip(loaded, alone, strict=True):
        assert all(torch.equal(*pair) for pair in zip(batch[:3], expected[:3], strict=True))


@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_training_without_linux_saves_on_ctrl_c_and_is_the_same_run(tiny, trainers, tmp_path):
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    recipe, shards = str(tiny / "tiny.yaml"), str(tiny / "shards")
    words = ["train_accelerate.py", "--recipe", recipe, "--shards", shards, "--run", str(run)]
    process = subprocess.Popen(
        [sys.executable, *words, "--workers", "1"],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": WITHOUT_LINUX, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: lines_of(run, "train") or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == EXIT_INTERRUPTED, said
    assert "Traceback" not in said
    assert read_metrics(run, "stop")[-1]["reason"] == "received SIGINT"
    trainers.train(tiny, run)
    trainers.train(tiny, undisturbed)
    assert hashes(run) == hashes(undisturbed)


def test_the_end_of_a_parent_is_noticed_without_the_kernels_help():
    child = (
        "import os, signal, threading, time\n"
        "from imagenet_rn50.utils.signals import set_parent_death_signal\n"
        "signal.signal(signal.SIGUSR1, lambda *_: (print('told', flush=True), os._exit(0)))\n"
        "[set_parent_death_signal(signal.SIGUSR1) for _ in range(9)]\n"
        "print(threading.active_count(), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "sys.stdin.read(1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": WITHOUT_LINUX},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "2\n"  # one thread watches, however often it is asked for
    said, _ = process.communicate("x", timeout=PATIENCE_S)
    assert said == "told\n"


def test_windows_is_refused_with_what_to_use_instead(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as left:
        importlib.reload(imagenet_rn50)
    assert left.value.code == 2
    assert "WSL2" in capsys.readouterr().err
