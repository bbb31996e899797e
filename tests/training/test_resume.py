"""Resuming: exact from any place, and refused where it would be another run. In one process."""

import dataclasses
import json
import os
import shutil
import signal
import time
from contextlib import closing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from imagenet_rn50.errors import InputError
from imagenet_rn50.loading.store import LocalShards
from imagenet_rn50.prove_resume import compare
from imagenet_rn50.recipe_files import load_recipe
from imagenet_rn50.runs.checkpoints import folder_name, newest_checkpoint, seal, verify
from imagenet_rn50.runs.metrics import Journal, read_metrics
from imagenet_rn50.training import fit as fitting
from imagenet_rn50.training import validation
from imagenet_rn50.training.interruption import EXIT_INTERRUPTED
from imagenet_rn50.training.learner import Learner
from imagenet_rn50.training.persistence import Persistence
from imagenet_rn50.training.saver import Saver
from imagenet_rn50.training.session import make_accelerator
from tests.support import write_recipe, write_shards
from tests.training.trainers import hashes, measured, steps_saved

# Everything that a checkpoint must hold: averages, mixing, growing crops, a plateau that cuts.
RECIPE = """\
epochs: 3
global_batch: 8
micro_batch: 4
ema_decay: 0.9
mixup_alpha: 0.2
cutmix_alpha: 1.0
model: {embedding_size: 8, hidden_sizes: [8, 8], depths: [1, 1], layer_type: basic}
data: {train_size: 32, final_size: 64, growth: [0, 2], eval_size: 32, eval_resize: 36,
       shuffle_window: 2}
optimizer: {lr: 0.05}
schedule: {name: constant, warmup_epochs: 0.5, plateau_patience: 1, plateau_threshold: 0.9}
"""
NUM_STEPS, ACCUMULATION = 8, 2  # 3 epochs of 21 pictures
EPOCH_ENDS = [24, 48, 64]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_shards(folder / "shards", train=[8, 6, 7], validation=[6, 5])
    write_recipe(folder, RECIPE)
    return folder


@pytest.fixture(autouse=True)
def _on_the_cpu_without_pictures(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setattr(fitting, "draw_plots", lambda run: None)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny matrices gain nothing from threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe_of(tiny):
    return load_recipe(str(tiny / "tiny.yaml"))


def train(tiny, run, recipe=None, shards=None, **persistence):
    """Runs one process's part of a run; returns its exit code."""
    session, learner = fitting.open_session(
        recipe or recipe_of(tiny),
        LocalShards(shards or tiny / "shards"),
        run,
        make_accelerator(),
        0,
        persistence=Persistence(**persistence),
    )
    try:
        fitting.fit(session, learner)
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.fixture(scope="module")
def finished(tiny, _one_thread):
    """A run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        patch.setattr(fitting, "draw_plots", lambda run: None)
        train(tiny, tiny / "undisturbed")
    return tiny / "undisturbed"


def assert_same_run(run, other):
    assert hashes(run) == hashes(other)
    assert measured(run) == measured(other)
    assert [line["samples_seen"] for line in read_metrics(run, "validation")] == EPOCH_ENDS


def signal_at(patch, micro_batch):
    """Sends this process a signal in the middle of a step, once."""
    plain, left = Learner._loss, iter(range(micro_batch))

    def loss(self, *arguments):
        if next(left, None) is None:
            patch.setattr(Learner, "_loss", plain)
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *arguments)

    patch.setattr(Learner, "_loss", loss)


@settings(max_examples=12)
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
    run, plain = tmp_path / "run", validation.evaluate

    def evaluate(learner, session, progress, journal, between_batches):
        if progress.samples_seen == epoch_end:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # the thread that hears it
        return plain(learner, session, progress, journal, between_batches)

    if with_checkpoint_before:
        train(tiny, run, stop_at_step=epoch_end // 8)
    monkeypatch.setattr(fitting, "evaluate", evaluate)
    assert train(tiny, run) == EXIT_INTERRUPTED
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert newest.samples_seen == epoch_end
    assert newest.facts["evaluation_due"]
    monkeypatch.setattr(fitting, "evaluate", plain)
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


def test_accelerate_itself_reads_a_checkpoint(tiny, finished):
    newest = newest_checkpoint(finished / "checkpoints")
    assert newest is not None
    accelerator = make_accelerator()
    session, learner = fitting.open_session(
        recipe_of(tiny), LocalShards(tiny / "shards"), finished, accelerator, 0, create=False
    )
    accelerator.load_state(str(newest.folder))
    learner.plateau.load_state_dict(newest.facts["plateau"])
    fresh = learner.capture()
    learner.restore(newest)
    restored = learner.capture()
    for name, tensor in restored["model.safetensors"].items():
        assert (fresh["model.safetensors"][name] == tensor).all()
    momenta = restored["optimizer.bin"]["state"]
    for number, entry in momenta.items():
        assert (
            fresh["optimizer.bin"]["state"][number]["momentum_buffer"] == entry["momentum_buffer"]
        ).all()
    assert momenta


@pytest.fixture(scope="module")
def stopped_once(tiny, _one_thread):
    run = tiny / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        train(tiny, run, stop_at_step=5, checkpoint_steps=1, keep_last=3)
    assert steps_saved(run) == [24, 32, 40]
    return run


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A run that stands at step 5, with checkpoints of steps 3, 4 and 5."""
    return shutil.copytree(stopped_once, tmp_path / "stopped")


def refusal(tiny, run, **options):
    """Returns the message of a refused start, which changes nothing."""
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(InputError) as refused:
        train(tiny, run, **options)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    return str(refused.value)


def other_recipe(tiny, **optimizer):
    recipe = recipe_of(tiny)
    changed = recipe.optimizer.model_copy(update=optimizer)
    return recipe.model_copy(update={"optimizer": changed})


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
    assert newest.facts["recipe"]["optimizer"]["weight_decay"] == 0.5
    assert train(tiny, stopped, recipe=recipe) == 0  # from now on it is the run's own


def test_a_change_that_was_asked_for_reaches_the_optimizer(tiny, stopped):
    session, learner = fitting.open_session(
        other_recipe(tiny, weight_decay=0.5, momentum=0.5),
        LocalShards(tiny / "shards"),
        stopped,
        make_accelerator(),
        0,
        persistence=Persistence(allow_change=("optimizer",)),
    )
    assert learner.optimizer.param_groups[0]["weight_decay"] == 0.5
    assert learner.optimizer.param_groups[0]["momentum"] == 0.5


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
        digest = json.loads((stopped / "shards.json").read_text())["digest"]
        from imagenet_rn50.shards.manifest import Manifest

        now = Manifest.digest_of(others)
        text = (stopped / "shards.json").read_text()
        (stopped / "shards.json").write_text(text.replace(digest, now))
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
    from imagenet_rn50.training import start

    monkeypatch.setattr(start, "learning_rate", lambda recipe, epoch, num_cuts: 0.049)
    assert "learning_rate: 0.05 -> 0.049" in refusal(tiny, stopped)


def test_beginning_anew_over_checkpoints_is_refused(tiny, stopped):
    assert "samples-000000040" in refusal(tiny, stopped, resume="none")


def test_a_run_goes_on_from_a_checkpoint_of_another_run_and_then_from_its_own(
    tiny, finished, stopped, tmp_path
):
    run, named = tmp_path / "forked", str(stopped / "checkpoints" / folder_name(32))
    train(tiny, run, resume=named, stop_at_step=6)
    assert read_metrics(run, "start")[0]["checkpoint"] == folder_name(32)
    train(tiny, run, resume=named)  # the same command goes on where the run stands
    assert read_metrics(run, "start")[-1]["checkpoint"] == folder_name(48)
    assert hashes(run) == hashes(finished)
    message = refusal(tiny, stopped, resume=named)
    assert "would abandon" in message
    assert "there is no such folder" in refusal(tiny, stopped, resume=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "name", ["checkpoint.json", "model.safetensors", "optimizer.bin", "ema.safetensors"]
)
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_each_file_that_is_damaged_is_named_and_the_checkpoint_before_is_taken(
    tiny, stopped, capsys, name, damage
):
    damaged = stopped / "checkpoints" / folder_name(40)
    assert {path.name for path in damaged.iterdir()} == {
        *("checkpoint.json", "model.safetensors", "optimizer.bin", "ema.safetensors")
    }
    content = bytearray((damaged / name).read_bytes())
    content[-1] ^= 1
    (damaged / name).write_bytes(content if damage == "flipped" else content[:-1])
    session, _ = fitting.open_session(
        recipe_of(tiny), LocalShards(tiny / "shards"), stopped, make_accelerator(), 0
    )
    assert session.start.samples_seen == 32
    assert str(damaged / name) in capsys.readouterr().out
    assert damaged.with_name(f"{damaged.name}.damaged").is_dir()


def test_a_run_goes_on_to_the_same_end_from_the_checkpoint_before_a_damaged_one(
    tiny, finished, stopped
):
    (stopped / "checkpoints" / folder_name(40) / "optimizer.bin").unlink()
    train(tiny, stopped)
    assert_same_run(stopped, finished)


def test_a_run_without_any_whole_checkpoint_is_not_begun_anew(tiny, stopped):
    for folder in (stopped / "checkpoints").iterdir():
        (folder / "checkpoint.json").unlink()
    assert "every checkpoint in" in refusal(tiny, stopped)


def test_an_older_manifest_in_a_newer_checkpoint_is_damage(stopped):
    checkpoints = stopped / "checkpoints"
    older = checkpoints / folder_name(32) / "checkpoint.json"
    shutil.copy(older, checkpoints / folder_name(40) / "checkpoint.json")
    with pytest.raises(InputError, match="is damaged"):
        verify(checkpoints / folder_name(40))


def test_a_pickle_that_would_run_something_is_not_run(tiny, stopped, tmp_path):
    import pickle

    class Stranger:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'owned'}",)

    checkpoint = verify(stopped / "checkpoints" / folder_name(40))
    made = tmp_path / "made.partial"
    shutil.copytree(checkpoint.folder, made)
    (made / "optimizer.bin").write_bytes(pickle.dumps(Stranger(), protocol=2))
    stranger = tmp_path / folder_name(40)
    seal(made, stranger, 40, is_best=False, **checkpoint.facts)
    with pytest.raises(InputError, match="something else than tensors"):
        train(tiny, tmp_path / "run", resume=str(stranger))
    assert not (tmp_path / "owned").exists()


def test_weights_that_are_not_finite_are_never_saved(tiny, tmp_path, capsys):
    session, learner = fitting.open_session(
        recipe_of(tiny), LocalShards(tiny / "shards"), tmp_path / "run", make_accelerator(), 0
    )
    journal = Journal(tmp_path / "run", 0)
    with closing(Saver(session, learner, journal)) as saver:
        with torch.no_grad():
            next(learner.bare.parameters())[0] = torch.nan
        saver.save(session.progress(8), 0)
        assert not saver.finish()
    journal.close()
    assert newest_checkpoint(session.folder.checkpoints) is None
    assert "is no longer finite" in capsys.readouterr().out


def test_weights_of_another_model_are_named(tiny, stopped, tmp_path):
    checkpoint = verify(stopped / "checkpoints" / folder_name(40))
    facts = dict(checkpoint.facts)
    recipe = recipe_of(tiny)
    wider = recipe.model.model_copy(update={"embedding_size": 16})
    recipe = recipe.model_copy(update={"model": wider})
    facts["recipe"] = recipe.model_dump(mode="json")
    lying = dataclasses.replace(checkpoint, facts=facts)
    session, learner = fitting.open_session(
        recipe, LocalShards(tiny / "shards"), tmp_path / "new", make_accelerator(), 0, create=False
    )
    with pytest.raises(InputError, match="another model's weights"):
        learner.restore(lying)


def test_the_loss_scale_of_fp16_is_kept_and_begins_anew_after_bf16(tiny, tmp_path):
    accelerator = make_accelerator()
    session, learner = fitting.open_session(
        recipe_of(tiny), LocalShards(tiny / "shards"), tmp_path / "run", accelerator, 0
    )
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    saver = Saver(session, learner, Journal(tmp_path / "run", 0))
    with closing(saver):
        saver.save(session.progress(8), 0)
        assert saver.finish()
        accelerator.scaler = None  # bf16
        learner.restore(verify(session.folder.checkpoints / folder_name(8)))
        saver.save(session.progress(16), 0)
        assert saver.finish()
    assert saver._journal is not None
    saver._journal.close()
    for samples_seen, scale in ((8, 512.0), (16, 1024.0)):
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        learner.restore(verify(session.folder.checkpoints / folder_name(samples_seen)))
        assert accelerator.scaler.get_scale() == scale


def test_what_follows_a_save_is_given_it_and_cannot_harm_it(tiny, tmp_path, capsys):
    session, learner = fitting.open_session(
        recipe_of(tiny), LocalShards(tiny / "shards"), tmp_path / "run", make_accelerator(), 0
    )
    given = []

    def upload(checkpoint):
        given.append(verify(checkpoint.folder))
        raise ConnectionError("the bucket is away")

    journal = Journal(tmp_path / "run", 0)
    with closing(Saver(session, learner, journal, upload)) as saver:
        saver.save(session.progress(8), 0)
        assert saver.finish()
    journal.close()
    assert [checkpoint.samples_seen for checkpoint in given] == [8]
    assert "is saved, but then: ConnectionError: the bucket is away" in capsys.readouterr().out


def test_the_proof_shows_a_difference(tiny, finished, stopped, tmp_path, capsys):
    train(tiny, tmp_path / "twin", stop_at_step=5, checkpoint_steps=1, keep_last=3)
    assert compare(stopped, tmp_path / "twin")
    assert "to the last bit" in capsys.readouterr().out
    learner_differs = tmp_path / "differs"
    train(tiny, learner_differs, stop_at_step=4, checkpoint_steps=1, keep_last=3)
    weights = verify(learner_differs / "checkpoints" / folder_name(32)).weights
    state = load_file(weights)
    state["classifier.1.bias"][0] += 1e-7
    state_again = learner_differs / "checkpoints" / "made.partial"
    shutil.copytree(weights.parent, state_again)
    facts = verify(weights.parent).facts
    save_file(state, state_again / weights.name)
    seal(state_again, weights.parent, 32, is_best=False, **facts)
    train(tiny, learner_differs, stop_at_step=5, checkpoint_steps=1, keep_last=3)
    assert not compare(stopped, learner_differs)
    said = capsys.readouterr().out
    assert said.count("DIFFERENT") == 2
    assert "The samples and learning rates are the same, the weights are not" in said
