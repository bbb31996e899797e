"""Whole runs of the training script, as processes, seen from outside."""

import importlib.util
import json
import platform
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_accelerate
from imagenet_rn50.peaks import PEAK_TFLOPS
from imagenet_rn50.recipe import load_recipe
from imagenet_rn50.runs.checkpoint import newest_checkpoint
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.runs.run_dir import RunDir
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.training.accelerator import make_accelerator
from imagenet_rn50.training.lr_finder import find_lr
from imagenet_rn50.training.trainer import Trainer
from imagenet_rn50.utilisation import training_flops
from tests.support import write_shards, write_tiny
from tests.training.trainers import measured

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Shards of 21 and 11 pictures, and a recipe for them."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def finished(tiny, trainers):
    """A run that nothing disturbed, on one rank."""
    run = tiny / "undisturbed"
    trainers.train(tiny, run, plots=True)
    return run


def command(tiny, run, *more):
    recipe, shards = str(tiny / "tiny.yaml"), str(tiny / "shards")
    script = [str(ROOT / "train_accelerate.py"), "--recipe", recipe, "--shards", shards]
    return [*script, "--run", str(run), "--workers", "1", *more]


def train_here(monkeypatch, tiny, run, *more):
    """Trains in this process, on one thread as `train` does; starting a new one takes seconds."""
    monkeypatch.setattr(sys, "argv", command(tiny, run, *more))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train_accelerate.main()
    finally:
        torch.set_num_threads(num_threads)


def weights(run):
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    return load_file(checkpoint.weights)


def test_a_run_leaves_what_its_folder_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        *("recipe.yaml", "shards.json", "classes.json"),
        *("metrics.jsonl", "logs.md", "plots", "checkpoints", "tensorboard"),
    }
    validations = read_metrics(finished, "validation")
    assert [line["samples_seen"] for line in validations] == [24, 48]  # 2 x 21, in steps of 8
    assert all(line["num_images"] == 11 for line in validations)
    last = validations[-1]
    assert f"| {last['top1']:.2%} | {last['top5']:.2%} |" in (finished / "logs.md").read_text()


def test_tensorboard_has_what_metrics_jsonl_says(finished):
    events = EventAccumulator(str(finished / "tensorboard" / "imagenet_rn50")).Reload()
    tags = [("train", "loss", "loss"), ("train", "lr", "lr")]
    tags += [("validation", key, f"validation/{key}") for key in ("top1", "top5", "loss")]
    for kind, key, tag in tags:
        told = [(line["samples_seen"], line[key]) for line in read_metrics(finished, kind)]
        logged = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in logged] == [step for step, _ in told]
        assert [value for _, value in logged] == pytest.approx([value for _, value in told])


def test_a_tracker_that_is_not_installed_is_named(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    words = command(tiny, tmp_path / "run", "--trackers", "wandb")
    assert exit_code_of(words, monkeypatch) == 2
    assert "pip install wandb" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_accumulation_that_accelerate_would_scale_by_is_refused(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert exit_code_of(command(tiny, tmp_path / "run"), monkeypatch) == 2
    assert "unset ACCELERATE_GRADIENT_ACCUMULATION_STEPS" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_too_little_gpu_memory_is_told_with_what_to_do(tiny, tmp_path, monkeypatch, capsys):
    def train_step(self, batches, lr, *, position):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it")

    monkeypatch.setattr(Trainer, "train_step", train_step)
    assert exit_code_of(command(tiny, tmp_path / "run"), monkeypatch) == 2
    told = capsys.readouterr().err
    assert "2.00 GiB" in told
    assert {"--micro-batch", "--find-micro-batch"} <= set(re.findall(r"--[a-z-]+", told))


def test_more_ranks_than_gpus_are_refused(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Accelerator, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert exit_code_of(command(tiny, tmp_path / "run"), monkeypatch) == 2
    assert "--num_processes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Drawing nothing, as after the first sample, is what might fail.
@pytest.mark.parametrize("split", [pytest.param("train", marks=pytest.mark.plots), "validation"])
def test_only_training_names_the_option_to_go_on_without_a_damaged_sample(
    split, tiny, tmp_path, monkeypatch, capsys
):
    shutil.copytree(tiny / "shards", tmp_path / "shards")
    damaged = Manifest.load(tmp_path / "shards").split(split)
    [shard, *_] = sorted((tmp_path / "shards").glob(f"tiny-{split}-*.tar"))
    content = bytearray(shard.read_bytes())
    content[damaged.offsets[0] : damaged.offsets[0] + 20] = bytes(20)
    shard.write_bytes(content)
    run = tmp_path / "run"
    words = command(tiny, run, "--shards", str(tmp_path / "shards"), "--workers", "0")
    assert exit_code_of(words, monkeypatch) == 2
    said = capsys.readouterr().err
    assert "is damaged" in said or "cannot be decoded" in said
    assert (run / "plots" / "loss.png").is_file()  # as far as it came
    assert ("continue with --on-corrupt substitute" in said) == (split == "train")


@pytest.mark.numeric
def test_two_ranks_give_the_weights_of_one_rank_that_accumulates(tiny, trainers, tmp_path):
    trainers.train(tiny, tmp_path / "one-rank", "--epochs", "8")
    run = tmp_path / "two-ranks"
    trainers.train_on_two_ranks(tiny, run, "--epochs", "8")
    assert read_metrics(run, "start")[0]["world_size"] == 2
    assert read_metrics(run)[-1]["samples_seen"] == 21 * 8  # 21 steps
    ours, alone = weights(run), weights(tmp_path / "one-rank")
    assert ours.keys() == alone.keys()
    for name, tensor in alone.items():
        if "num_batches_tracked" not in name:  # counts a rank's micro batches; nothing reads it
            torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5)
    assert read_metrics(run, "validation")[-1]["num_images"] == 11


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_the_number_of_workers_changes_nothing(tiny, finished, num_workers, tmp_path, monkeypatch):
    train_here(monkeypatch, tiny, tmp_path / "run", "--workers", num_workers)
    ours, one_worker = weights(tmp_path / "run"), weights(finished)
    assert ours.keys() == one_worker.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in one_worker.items())


def test_flops_follow_the_size_of_the_images(tiny, tmp_path, monkeypatch):
    growth = ("--data.final-size", "32", "--data.growth", "0", "1")
    train_here(monkeypatch, tiny, tmp_path / "run", "--workers", "0", *growth)
    model = load_recipe(str(tiny / "tiny.yaml")).model
    lines = read_metrics(tmp_path / "run", "train")
    assert [line["num_images"] for line in lines] == [24, 24]
    for line, size in zip(lines, (16, 32), strict=True):
        flops = 24 * training_flops(model, size, num_classes=3)
        assert line["tflops"] * line["seconds"] * 1e12 == pytest.approx(flops)
        assert "mfu" not in line  # of a CPU


def test_mfu_is_the_part_of_the_peak_that_is_used(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(PEAK_TFLOPS, platform.machine(), (0.5, 0.25))  # float32, half precision
    train_here(monkeypatch, tiny, tmp_path / "run", "--workers", "0")
    for line in read_metrics(tmp_path / "run", "train"):
        assert line["mfu"] == pytest.approx(line["tflops"] / 0.5)


def test_a_run_that_was_killed_goes_on_to_the_same_weights(tiny, trainers, finished):
    run = tiny / "killed"
    trainer = trainers.start(tiny, run)
    trainer.until(lambda: newest_checkpoint(run / "checkpoints") is not None).kill()
    trainers.train(tiny, run)
    ours, alone = weights(run), weights(finished)
    assert all(torch.equal(ours[name], tensor) for name, tensor in alone.items())
    assert measured(run) == measured(finished)


def test_a_finished_run_is_left_as_it_is(tiny, trainers, finished):
    before = state_of(finished)
    assert "Nothing to train" in trainers.train(tiny, finished)
    assert state_of(finished) == before


def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_taken(tiny, trainers, finished):
    run = tiny / "damaged"
    shutil.copytree(finished, run)
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    content = bytearray(newest.weights.read_bytes())
    content[len(content) // 2] ^= 1
    newest.weights.write_bytes(bytes(content))
    said = trainers.train(tiny, run)
    assert "skipping a damaged checkpoint" in said
    assert "Nothing to train" not in said
    ours, alone = weights(run), weights(finished)
    assert all(torch.equal(ours[name], tensor) for name, tensor in alone.items())


def test_a_wrong_run_folder_is_answered_with_one_message_and_code_2(tiny, trainers, finished):
    before = state_of(finished)
    said = trainers.train(tiny, finished, "--optimizer.lr", "0.3", code=2)
    assert said.count("error: ") == 1
    assert "already holds a run of another recipe" in said
    assert "optimizer.lr: 0.05 -> 0.3" in said
    assert "Traceback" not in said
    assert state_of(finished) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--recipe", "digts"], "did you mean 'digits'?"),
        (["--shards", "no/such/folder"], "holds no manifest"),
        (["--run", str(ROOT / "tests")], "is not a run directory"),
        (["--run", "/proc/nope/run"], "/proc/nope/run cannot be written"),
        (["--resume", ""], "--resume is empty"),
        (["--optimizer.lt", "0.3"], "--optimizer.lr"),
        (["--global-batch", "24"], "--global-batch 20 --micro-batch 4"),
        (["--global-batch", "2", "--micro-batch", "4"], "must be a multiple of"),
    ],
)
def test_wrong_use_changes_nothing(tiny, finished, more, message, monkeypatch, capsys):
    before = state_of(finished)
    assert exit_code_of(command(tiny, finished, *more), monkeypatch) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert state_of(finished) == before


def test_shards_that_changed_are_refused_by_an_older_run(
    tiny, finished, tmp_path, monkeypatch, capsys
):
    write_shards(tmp_path / "others", train=[8, 6, 6], validation=[6, 5])
    words = command(tiny, finished, "--shards", str(tmp_path / "others"))
    assert exit_code_of(words, monkeypatch) == 2
    fingerprint = json.loads((finished / "shards.json").read_text())["fingerprint"]
    assert f"the shards of tiny with fingerprint {fingerprint[:12]}" in capsys.readouterr().err


def test_the_lr_finder_suggests_a_rate_and_leaves_the_folder_to_a_run(
    tiny, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    words = command(tiny, run, "--find-lr", "--workers", "0", "--micro-batch", "8")
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    train_accelerate.main()
    assert {path.name for path in run.iterdir()} == {"lr_finder.json", "lr_finder.png"}
    found = json.loads((run / "lr_finder.json").read_text())
    said = capsys.readouterr().out
    assert f"suggested peak: --optimizer.lr {found['suggestion']:.3g}" in said
    assert all(str(run / f"lr_finder.{ending}") in said for ending in ("json", "png"))
    RunDir(run).check(load_recipe(str(tiny / "tiny.yaml")), tiny / "shards")


def test_after_the_lr_finder_everything_is_as_before(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    recipe = load_recipe(str(tiny / "tiny.yaml")).model_copy(update={"ema_decay": 0.9})
    accelerator = make_accelerator()
    shards = LocalShards(tiny / "shards")
    trainer = Trainer(recipe, shards, tmp_path / "run", accelerator, create=False)
    before = trainer.state.snapshot()
    find_lr(trainer, num_steps=12)
    after = trainer.state.snapshot()
    for name, tensor in before["model"].items():
        assert torch.equal(after["model"][name], tensor)
    assert trainer.state.ema is not None
    for name, tensor in before["ema"].model.state_dict().items():
        assert torch.equal(trainer.state.ema.model.state_dict()[name], tensor)
    assert after["optimizer"]["state"] == before["optimizer"]["state"] == {}


def test_too_small_a_disk_is_noticed_before_anything_is_written(
    tiny, tmp_path, monkeypatch, capsys
):
    full = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert exit_code_of(command(tiny, tmp_path / "run"), monkeypatch) == 2
    assert "not enough disk space for checkpoints" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def state_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def exit_code_of(words, monkeypatch):
    """Runs the script's main in this process; starting a new one takes seconds."""
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    with pytest.raises(SystemExit) as ended:
        train_accelerate.main()
    return ended.value.code
