"""Checkpoints that are damaged, foreign or not to be trusted."""

import dataclasses
import errno
import os
import shutil
from contextlib import closing

import pytest
import torch

from imagenet_rn50.runs.checkpoint import (
    checkpoint_folders,
    commit,
    folder_name,
    newest_checkpoint,
    verify,
)
from imagenet_rn50.runs.metrics import MetricsLogger, read_metrics
from imagenet_rn50.training import checkpointer as checkpointing
from imagenet_rn50.training.checkpointer import AsyncCheckpointer
from imagenet_rn50.utils.errors import InputError
from tests.training.resuming.support import (
    assert_same_run,
    build,
    recipe_of,
    refusal,
    train,
)
from tests.training.trainers import steps_saved


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoint.json", "model.safetensors", "optimizer.bin", "ema.safetensors"),
        *("scaler.pt", "train_state.json"),
    ],
)
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_each_file_that_is_damaged_is_named_and_the_checkpoint_before_is_taken(
    tiny, stopped, capsys, name, damage
):
    damaged = stopped / "checkpoints" / folder_name(40)
    assert len(list(damaged.iterdir())) == 6
    content = bytearray((damaged / name).read_bytes())
    content[-1] ^= 1
    (damaged / name).write_bytes(content if damage == "flipped" else content[:-1])
    assert build(tiny, stopped).state.progress.samples_seen == 32
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


def test_a_run_whose_checkpoints_are_gone_is_begun_anew_only_when_told_to(tiny, stopped):
    shutil.rmtree(stopped / "checkpoints")
    message = refusal(tiny, stopped)
    assert "records saves" in message
    assert f"{folder_name(40)} or an older one" in message
    assert train(tiny, stopped, resume="none", stop_at_step=1) == 0
    assert steps_saved(stopped) == [8]
    assert {line["samples_seen"] for line in read_metrics(stopped)} == {0, 8}


def test_a_run_whose_every_save_failed_begins_anew(tiny, stopped):
    shutil.rmtree(stopped / "checkpoints")
    path = stopped / "metrics.jsonl"
    path.write_text(path.read_text().replace('"failed": null', '"failed": "no space left"'))
    assert train(tiny, stopped, stop_at_step=1) == 0
    assert steps_saved(stopped) == [8]


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
    commit(made, stranger, 40, is_best=False, metadata=checkpoint.metadata)
    with pytest.raises(InputError, match="cannot be loaded"):
        train(tiny, tmp_path / "run", resume=str(stranger))
    assert not (tmp_path / "owned").exists()


def checkpointer_of(trainer, **options):
    """Returns what saves a trainer's state, and its logger."""
    logger = MetricsLogger(trainer.run.path, 0)
    return AsyncCheckpointer(trainer.run, trainer.config, logger, **options), logger


def save(checkpointer, state, samples_seen, **metadata):
    """Saves a state, as if it had seen so many samples; returns whether that succeeded."""
    state.progress = dataclasses.replace(state.progress, samples_seen=samples_seen)
    checkpointer.save(state, metadata)
    return checkpointer.wait()


def test_weights_that_are_not_finite_are_never_saved(tiny, tmp_path, capsys):
    trainer = build(tiny, tmp_path / "run")
    checkpointer, logger = checkpointer_of(trainer)
    with closing(logger), closing(checkpointer):
        with torch.no_grad():
            next(trainer.state.model.parameters())[0] = torch.nan
        assert not save(checkpointer, trainer.state, 8)
    assert newest_checkpoint(trainer.run.checkpoints) is None
    assert "is no longer finite" in capsys.readouterr().out


def test_what_could_not_be_saved_is_not_what_a_later_best_must_beat(tiny, tmp_path, monkeypatch):
    trainer = build(tiny, tmp_path / "run")
    checkpointer, logger = checkpointer_of(trainer)

    def full(folder, state):
        raise OSError(errno.ENOSPC, "no space left")

    with closing(logger), closing(checkpointer):
        for samples_seen, score in ((8, 0.3), (16, 0.6), (24, 0.5), (32, 0.45), (40, 0.4)):
            with monkeypatch.context() as patch:
                if score == 0.6:
                    patch.setattr(checkpointing, "write_state", full)
                is_saved = save(checkpointer, trainer.state, samples_seen, score=score)
                assert is_saved == (score != 0.6)
    left = [verify(folder) for folder in checkpoint_folders(trainer.run.checkpoints)]
    assert [(c.samples_seen, c.is_best) for c in left] == [(24, True), (32, False), (40, False)]


def test_weights_of_another_model_are_refused(tiny, stopped, tmp_path):
    recipe = recipe_of(tiny)
    wider = recipe.model.model_copy(update={"embedding_size": 16})
    recipe = recipe.model_copy(update={"model": wider})
    checkpoint = verify(stopped / "checkpoints" / folder_name(40))
    shutil.copytree(checkpoint.folder, tmp_path / "made.partial")
    lying = checkpoint.metadata | {"recipe": recipe.model_dump(mode="json")}
    stranger = tmp_path / folder_name(40)
    commit(tmp_path / "made.partial", stranger, 40, is_best=False, metadata=lying)
    with pytest.raises(InputError, match="cannot be loaded into this model"):
        build(tiny, tmp_path / "new", recipe=recipe, resume=str(stranger))


def test_the_loss_scale_of_fp16_is_kept_and_starts_again_after_bf16(tiny, tmp_path):
    trainer = build(tiny, tmp_path / "run")
    checkpointer, logger = checkpointer_of(trainer)
    with closing(logger), closing(checkpointer):
        trainer.state.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
        assert save(checkpointer, trainer.state, 8)
        trainer.state.scaler = None  # bf16
        assert save(checkpointer, trainer.state, 16)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for samples_seen, scale in ((8, 512.0), (16, 65536.0)):
        folder = trainer.run.checkpoints / folder_name(samples_seen)
        trainer.accelerator.load_state(str(folder))
        assert trainer.accelerator.scaler.get_scale() == scale


def test_what_follows_a_save_is_given_it_and_cannot_harm_it(tiny, tmp_path, capsys):
    given = []

    def upload(checkpoint):
        given.append(verify(checkpoint.folder))
        raise ConnectionError("the bucket is away")

    trainer = build(tiny, tmp_path / "run")
    checkpointer, logger = checkpointer_of(trainer, after_save=upload)
    with closing(logger), closing(checkpointer):
        assert save(checkpointer, trainer.state, 8)
    assert [checkpoint.samples_seen for checkpoint in given] == [8]
    assert "ConnectionError: the bucket is away" in capsys.readouterr().out
