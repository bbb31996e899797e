"""Resuming is exact, from any place."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from imagenet_rn50.data.sampler import ShardShuffleSampler
from imagenet_rn50.runs.checkpoint import commit, folder_name, newest_checkpoint, verify
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.shards.manifest import TRAIN, Manifest
from imagenet_rn50.tools.prove_resume import compare
from imagenet_rn50.training.preemption import EXIT_INTERRUPTED
from imagenet_rn50.training.sample_hash import hash_of_samples, wrapped
from imagenet_rn50.training.state import PROGRESS
from imagenet_rn50.training.trainer import Trainer
from imagenet_rn50.utils.files import read_json
from tests.support import free_ports
from tests.training.resuming.support import (
    ACCUMULATION,
    EPOCH_ENDS,
    NUM_STEPS,
    assert_same_run,
    build,
    recipe_of,
    train,
)
from tests.training.trainers import ROOT, steps_saved


def signal_at(patch, micro_batch, until_heard=0.0):
    """Sends this process a signal in the middle of a step, once."""
    plain, left = Trainer.loss, iter(range(micro_batch))

    def loss(self, *arguments):
        if next(left, None) is None:
            patch.setattr(Trainer, "loss", plain)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(until_heard)
        return plain(self, *arguments)

    patch.setattr(Trainer, "loss", loss)


@pytest.mark.numeric
@settings(max_examples=4)
@given(cuts=st.lists(st.integers(0, ACCUMULATION * NUM_STEPS - 1), min_size=1, max_size=3))
def test_a_run_cut_in_any_micro_batches_of_any_epochs_ends_with_the_same_bits(
    tiny, finished, tmp_path_factory, cuts
):
    run = tmp_path_factory.mktemp("cut") / "run"
    for cut in cuts:
        with pytest.MonkeyPatch.context() as patch:
            signal_at(patch, cut)
            train(tiny, run)
    train(tiny, run)
    assert_same_run(run, finished)


@pytest.mark.parametrize(("micro_batch", "saved"), [(0, []), (4, [16]), (5, [24])])
def test_a_signal_in_the_middle_of_a_step_abandons_it_and_saves_what_was_before(
    tiny, finished, tmp_path, monkeypatch, micro_batch, saved
):
    run = tmp_path / "run"
    signal_at(monkeypatch, micro_batch, until_heard=0.2)
    assert train(tiny, run) == EXIT_INTERRUPTED
    assert steps_saved(run) == saved
    assert [line["samples_seen"] for line in read_metrics(run, "stop")] == (saved or [0])
    train(tiny, run)
    assert_same_run(run, finished)


def test_every_step_is_a_place_to_stop_and_to_go_on(tiny, finished, tmp_path):
    run = tmp_path / "run"
    for step in range(1, NUM_STEPS + 1):
        assert train(tiny, run, stop_at_step=step, keep_last=1) == 0
        assert steps_saved(run)[-1] == 8 * step
    train(tiny, run)
    assert_same_run(run, finished)


@pytest.mark.parametrize("epoch_end", EPOCH_ENDS)
@pytest.mark.parametrize("with_checkpoint_before", [True, False])
def test_a_signal_in_evaluation_ends_it_and_it_is_done_once_when_going_on(
    tiny, finished, tmp_path, monkeypatch, epoch_end, with_checkpoint_before
):
    run, plain = tmp_path / "run", Trainer.validate

    def validate(trainer):
        if trainer.state.progress.samples_seen == epoch_end:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # the thread that hears it
        return plain(trainer)

    if with_checkpoint_before:
        train(tiny, run, stop_at_step=epoch_end // 8)
    monkeypatch.setattr(Trainer, "validate", validate)
    assert train(tiny, run) == EXIT_INTERRUPTED
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert newest.samples_seen == epoch_end
    assert json.loads((newest.folder / PROGRESS).read_text())["evaluation_due"]
    monkeypatch.setattr(Trainer, "validate", plain)
    train(tiny, run)
    assert_same_run(run, finished)


def test_a_validation_that_was_written_but_not_saved_is_written_once(tiny, finished, tmp_path):
    run = tmp_path / "run"
    train(tiny, run, stop_at_step=3)
    shutil.copytree(run / "checkpoints", tmp_path / "before")
    train(tiny, run, stop_at_step=4)
    shutil.rmtree(run / "checkpoints")  # as if killed before the evaluated state was saved
    shutil.copytree(tmp_path / "before", run / "checkpoints")
    train(tiny, run)
    assert_same_run(run, finished)


def test_a_step_to_stop_at_that_is_reached_trains_nothing_more(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(tiny, run, stop_at_step=3) == 0
    before = read_metrics(run)
    for stop_at_step in (3, 2):
        assert train(tiny, run, stop_at_step=stop_at_step) == 0
        assert f"--stop-at-step is {stop_at_step}" in capsys.readouterr().out
    assert read_metrics(run) == before
    assert steps_saved(run) == [24]


def test_another_batch_size_goes_on_at_the_very_next_sample(tiny, stopped):
    larger = recipe_of(tiny).model_copy(update={"global_batch": 12})
    train(tiny, stopped, recipe=larger, allow_change=("global_batch",))
    lines = read_metrics(stopped, "train")
    assert lines[-1]["samples_seen"] == 40 + 2 * 12  # 3 x 21, in steps of 8, then of 12
    train_split = Manifest.load(tiny / "shards").split(TRAIN)
    order = ShardShuffleSampler(train_split.shard_sizes, seed=0, window=2)
    for line in lines:
        _, indices = order.indices(0, line["samples_seen"])
        expected = wrapped(hash_of_samples(0, torch.from_numpy(indices)))
        assert line["sample_hash"] == f"{expected:016x}"
    assert [line["samples_seen"] for line in read_metrics(stopped, "validation")] == [24, 52, 64]


def is_same(ours, theirs):
    """Compares tensors and plain values in containers, to the last bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(is_same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(is_same, ours, theirs))
    return bool(ours == theirs)


@pytest.mark.parametrize("samples_seen", [24, 32, 40])
def test_accelerates_load_state_restores_all_that_a_resume_restores(tiny, stopped, samples_seen):
    fresh = build(tiny, stopped, create=False)
    fresh.accelerator.load_state(str(stopped / "checkpoints" / folder_name(samples_seen)))
    for folder in (stopped / "checkpoints").iterdir():
        if folder.name > folder_name(samples_seen):
            shutil.rmtree(folder)
    resumed = build(tiny, stopped)
    assert resumed.state.progress.samples_seen == samples_seen
    assert resumed.state.optimizer.state_dict()["state"]
    assert is_same(fresh.state.state_dict(), resumed.state.state_dict())


@pytest.mark.slow
@pytest.mark.multiprocess
def test_accelerates_load_state_restores_the_same_state_on_two_ranks(tiny, stopped):
    folder = stopped / "checkpoints" / folder_name(40)
    [port] = free_ports()
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "tests.training.resuming.load_on_rank", str(tiny), str(folder)]
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ
            | place
            | {"RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for process in ranks:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert said.splitlines()[-1] == "equal on 2 ranks"


def test_a_checkpoint_holds_what_accelerates_save_state_writes(tiny, stopped, tmp_path):
    trainer = build(tiny, stopped)
    trainer.accelerator.save_state(str(tmp_path / "saved"))
    ours = stopped / "checkpoints" / folder_name(40)
    # Accelerate adds the state of random generators, which nothing here draws from.
    theirs = {path.name for path in (tmp_path / "saved").iterdir()} - {"random_states_0.pkl"}
    assert {path.name for path in ours.iterdir()} - {"checkpoint.json"} == theirs
    for name in theirs:
        load: Callable[[Path], Any]
        if name.endswith(".safetensors"):
            load = load_file
        elif name.endswith(".json"):
            load = read_json
        else:
            load = functools.partial(torch.load, weights_only=True)
        assert is_same(load(ours / name), load(tmp_path / "saved" / name))


def test_the_proof_shows_a_difference(tiny, finished, stopped, tmp_path, capsys):
    train(tiny, tmp_path / "twin", stop_at_step=5, checkpoint_steps=1, keep_last=3)
    assert compare(stopped, tmp_path / "twin")
    assert "Bit-identical" in capsys.readouterr().out
    learner_differs = tmp_path / "differs"
    train(tiny, learner_differs, stop_at_step=4, checkpoint_steps=1, keep_last=3)
    weights = verify(learner_differs / "checkpoints" / folder_name(32)).weights
    state = load_file(weights)
    state["classifier.1.bias"][0] += 1e-7
    state_again = learner_differs / "checkpoints" / "made.partial"
    shutil.copytree(weights.parent, state_again)
    facts = verify(weights.parent).metadata
    save_file(state, state_again / weights.name)
    commit(state_again, weights.parent, 32, is_best=False, metadata=facts)
    train(tiny, learner_differs, stop_at_step=5, checkpoint_steps=1, keep_last=3)
    assert not compare(stopped, learner_differs)
    said = capsys.readouterr().out
    assert said.count("DIFFERENT") == 2
    assert "Samples and learning rates are the same" in said
