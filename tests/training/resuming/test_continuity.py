"""Resuming is refused where it would be another run."""

import json
from pathlib import Path

import pytest

from imagenet_rn50.runs.checkpoint import folder_name, newest_checkpoint
from imagenet_rn50.runs.metrics import read_metrics
from tests.support import write_shards
from tests.training.resuming.support import (
    NUM_STEPS,
    build,
    other_recipe,
    recipe_of,
    refusal,
    train,
)
from tests.training.trainers import hashes


def test_a_changed_recipe_is_refused_with_both_values_until_it_is_named(tiny, stopped):
    recipe = other_recipe(tiny, lr=0.02, weight_decay=0.5)
    message = refusal(tiny, stopped, recipe=recipe, allow_change=("optimizer.lr",))
    assert "optimizer.weight_decay: 0.0001 -> 0.5" in message
    assert "optimizer.lr" not in message
    assert "--allow-change optimizer.weight_decay" in message
    allowed = ("optimizer.lr", "optimizer.weight_decay")
    train(tiny, stopped, recipe=recipe, allow_change=allowed, stop_at_step=7)
    changes = read_metrics(stopped, "start")[-1]["changes"]
    assert {"optimizer.lr: 0.05 -> 0.02", "optimizer.weight_decay: 0.0001 -> 0.5"} < set(changes)
    assert "learning_rate: 0.05 -> 0.02" in changes
    assert read_metrics(stopped, "train")[-1]["lr"] == 0.02
    newest = newest_checkpoint(stopped / "checkpoints")
    assert newest is not None
    assert newest.metadata["recipe"]["optimizer"]["weight_decay"] == 0.5
    assert train(tiny, stopped, recipe=recipe) == 0  # from now on it is the run's own


def test_a_change_that_was_asked_for_reaches_the_optimizer(tiny, stopped):
    recipe = other_recipe(tiny, weight_decay=0.5, momentum=0.5)
    state = build(tiny, stopped, recipe=recipe, allow_change=("optimizer",)).state
    assert state.optimizer.param_groups[0]["weight_decay"] == 0.5
    assert state.optimizer.param_groups[0]["momentum"] == 0.5


@pytest.mark.parametrize(
    ("change", "key"), [({"seed": 1}, "seed"), ({"optimizer": {"name": "adamw"}}, "optimizer.name")]
)
def test_what_makes_the_saved_state_meaningless_is_refused_even_when_named(
    tiny, stopped, change, key
):
    recipe = recipe_of(tiny)
    if "optimizer" in change:
        recipe = other_recipe(tiny, **change["optimizer"])
    else:
        recipe = recipe.model_copy(update=change)
    assert key in refusal(tiny, stopped, recipe=recipe, allow_change=("optimizer",))
    message = refusal(tiny, stopped, recipe=recipe, allow_change=(key,))
    assert "cannot change within a run" in message


def test_a_change_of_nothing_that_there_is_names_the_nearest(tiny, stopped):
    assert "did you mean optimizer.lr?" in refusal(tiny, stopped, allow_change=("optimiser.lr",))


@pytest.mark.parametrize("where", ["run", "checkpoint"])
def test_other_shards_and_older_manifests_are_refused_until_they_are_named(
    tiny, stopped, tmp_path, where
):
    others = tmp_path / "others"
    write_shards(others, train=[8, 6, 7], validation=[6, 4])
    if where == "checkpoint":  # the run folder says so, the checkpoint tells the truth
        fingerprint = json.loads((stopped / "shards.json").read_text())["fingerprint"]
        from imagenet_rn50.shards.manifest import Manifest

        now = Manifest.fingerprint_of(others)
        text = (stopped / "shards.json").read_text()
        (stopped / "shards.json").write_text(text.replace(fingerprint, now))
    message = refusal(tiny, stopped, shards=others)
    assert "--allow-change shards" in message
    train(tiny, stopped, shards=others, allow_change=("shards",), stop_at_step=6)
    assert any("shards" in change for change in read_metrics(stopped, "start")[-1]["changes"])


def test_another_precision_is_refused_until_it_is_named(tiny, stopped, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    try:
        message = refusal(tiny, stopped)
        assert "mixed_precision: no -> bf16" in message
        train(tiny, stopped, allow_change=("mixed_precision",), stop_at_step=6)
        assert read_metrics(stopped, "start")[-1]["mixed_precision"] == "bf16"
    finally:
        monkeypatch.undo()
        AcceleratorState._reset_state(True)


def test_a_learning_rate_that_nothing_explains_is_refused(tiny, stopped, monkeypatch):
    from imagenet_rn50.training import resume

    monkeypatch.setattr(resume, "learning_rate", lambda recipe, epoch, num_cuts: 0.049)
    assert "learning_rate: 0.05 -> 0.049" in refusal(tiny, stopped)


def test_beginning_anew_over_checkpoints_is_refused(tiny, stopped):
    assert "samples-000000040" in refusal(tiny, stopped, resume="none")


def test_a_run_goes_on_from_a_checkpoint_of_another_run_and_then_from_its_own(
    tiny, finished, stopped, tmp_path
):
    run, named = tmp_path / "forked", str(stopped / "checkpoints" / folder_name(32))
    train(tiny, run, resume=named, stop_at_step=6)
    assert read_metrics(run, "start")[0]["checkpoint"] == folder_name(32)
    train(tiny, run, resume=named, stop_at_step=7)  # the same command goes on where the run stands
    assert read_metrics(run, "start")[-1]["checkpoint"] == folder_name(48)
    pruned = Path(named).rename(tmp_path / "pruned")  # as the other run does one day
    train(tiny, run, resume=named)
    assert read_metrics(run, "start")[-1]["checkpoint"] == folder_name(56)
    pruned.rename(named)
    assert hashes(run) == hashes(finished)
    message = refusal(tiny, stopped, resume=named)
    assert "would be abandoned" in message
    assert "does not exist" in refusal(tiny, stopped, resume=str(tmp_path / "nowhere"))


def test_a_run_that_begins_where_all_but_evaluating_is_done_ends_well(tiny, tmp_path, capsys):
    train(tiny, tmp_path / "stopped", stop_at_step=NUM_STEPS)
    named = str(tmp_path / "stopped" / "checkpoints" / folder_name(NUM_STEPS * 8))
    capsys.readouterr()
    assert train(tiny, tmp_path / "forked", resume=named) == 0
    assert "no step was trained" in capsys.readouterr().out
    (validation,) = read_metrics(tmp_path / "forked", "validation")
    assert validation["samples_seen"] == NUM_STEPS * 8
