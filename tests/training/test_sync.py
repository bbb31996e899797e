"""`--sync`: a run goes on from where it was brought to, on a machine that has nothing of it."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from imagenet_rn50.runs.checkpoint import checkpoint_folders
from imagenet_rn50.runs.metrics import read_metrics
from tests.support import write_recipe, write_shards
from tests.training.trainers import (
    EXIT_INTERRUPTED,
    RECIPE,
    TRAIN_SIZES,
    VALIDATION_SIZES,
    assert_same_run,
    lines_of,
    steps_saved,
)

pytestmark = pytest.mark.multiprocess
SECRET = "s3cr3t-of-the-bucket"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_shards(folder / "shards", TRAIN_SIZES, VALIDATION_SIZES)
    write_recipe(folder, RECIPE.replace("epochs: 6", "epochs: 4"))
    return folder


@pytest.fixture(scope="module")
def finished(tiny, trainers):
    """A run that nothing disturbed."""
    trainers.train(tiny, tiny / "undisturbed")
    return tiny / "undisturbed"


@pytest.fixture
def bucket(bucket_server, monkeypatch):
    """An empty bucket, and credentials for it that trainers inherit."""
    bucket_server.create_bucket(Bucket="runs")
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION")
    environment = {name: os.environ[name] for name in names}
    return bucket_server, environment | {"AWS_SECRET_ACCESS_KEY": SECRET}


def objects(client):
    listed = client.list_objects_v2(Bucket="runs").get("Contents", [])
    return {entry["Key"]: entry["Size"] for entry in listed}


def trains_since_its_start(run):
    """Says whether the second process of a run has written of its steps."""
    kinds = [line["kind"] for line in lines_of(run, None)]
    return kinds.count("start") == 2 and kinds[-1] in {"train", "checkpoint"}


def test_a_killed_run_goes_on_on_another_machine_from_s3_to_the_same_weights(
    tiny, trainers, finished, bucket, tmp_path
):
    client, environment = bucket
    options = ("--sync", "s3://runs/one", "--price-per-hour", "3600")
    always_saving = (*options, "--checkpoint-steps", "1")
    run, said = tmp_path / "first", ""

    trainer = trainers.start(tiny, run, *always_saving, **environment)
    trainer.until(lambda: "one/latest.json" in objects(client), every_s=0.1)
    trainer.kill()
    said += trainer.said()
    shutil.rmtree(run)

    run = tmp_path / "second"
    trainer = trainers.start(tiny, run, *always_saving, **environment)
    trainer.until(lambda: trains_since_its_start(run)).send(signal.SIGTERM)
    assert trainer.wait() == EXIT_INTERRUPTED, trainer.said()
    said += trainer.said()
    assert "downloading the run from s3://runs/one" in trainer.said()
    saved = steps_saved(run)[-1]
    paid = read_metrics(run, "stop")[-1]["cost_usd"]
    shutil.rmtree(run)

    run = tmp_path / "third"
    said += trainers.train(tiny, run, *options, **environment)
    start = read_metrics(run, "start")[-1]
    assert start["samples_seen"] == saved, "the save at the end was brought before the end"
    assert start["cost_usd"] == pytest.approx(paid, abs=0.5), "what was paid before stays paid"
    costs = [line["cost_usd"] for line in read_metrics(run)]
    assert costs == sorted(costs)
    assert read_metrics(run, "train")[-1]["cost_left_usd"] == 0
    assert "USD spent" in said
    assert_same_run(run, finished)
    assert SECRET not in said + json.dumps(read_metrics(run))

    # What stands there is what stands here, and nothing else.
    brought = json.loads(client.get_object(Bucket="runs", Key="one/latest.json")["Body"].read())
    names = {f"one/objects/{file['sha256']}-{Path(file['path']).name}" for file in brought["files"]}
    assert names | {"one/latest.json", "one/logs.md", "one/metrics.jsonl"} == set(objects(client))
    paths = [Path(file["path"]).parts for file in brought["files"]]
    there = {parts[1] for parts in paths if parts[0] == "checkpoints"}
    assert there == {folder.name for folder in checkpoint_folders(run / "checkpoints")}
    logs = client.get_object(Bucket="runs", Key="one/logs.md")["Body"].read().decode()
    assert logs == (run / "logs.md").read_text(encoding="utf-8")


def test_what_keeps_a_run_from_being_synced_is_said_once_and_ends_nothing(
    tiny, trainers, finished, tmp_path
):
    run, address = tmp_path / "run", tmp_path / "elsewhere"
    options = ("--checkpoint-steps", "5", "--sync", str(address))
    trainer = trainers.start(tiny, run, *options)
    trainer.until(lambda: (address / "latest.json").is_file())
    latest = (address / "latest.json").read_text()
    (address / "latest.json").write_text(latest + " ")  # as if another process had
    assert trainer.wait() == 0
    assert trainer.said().count("uploading the run failed: another process syncs to") == 1
    assert "lacks the end of the run" in trainer.said()
    assert_same_run(run, finished)
    # The same command, once the other one is gone, brings what is missing.
    trainers.train(tiny, run, *options)
    another = tmp_path / "another"
    trainers.train(tiny, another, *options)
    assert_same_run(another, finished)


def test_an_address_that_cannot_be_written_is_refused_before_training(
    tiny, trainers, bucket, tmp_path
):
    _, environment = bucket
    options = ("--sync", "s3://no-such-bucket/run")
    said = trainers.train(tiny, tmp_path / "run", *options, code=2, **environment)
    assert "s3://no-such-bucket/run/" in said
    assert "NoSuchBucket" in said
    assert SECRET not in said
    assert not (tmp_path / "run").exists()


def test_another_recipe_and_a_new_beginning_are_refused_where_a_run_stands(
    tiny, trainers, tmp_path
):
    address = ("--sync", str(tmp_path / "elsewhere"))
    trainers.train(tiny, tmp_path / "run", *address, "--stop-at-step", "1")
    another = tmp_path / "another"
    said = trainers.train(tiny, another, *address, "--optimizer.lr", "0.01", code=2)
    assert "elsewhere already holds a run of another recipe" in said
    said = trainers.train(tiny, another, *address, "--resume", "none", code=2)
    assert "elsewhere holds a run" in said
    assert not another.exists()
    said = trainers.train(tiny, another, "--sync", str(another), code=2)
    assert "a run cannot be uploaded into a run directory" in said
    assert not another.exists()
