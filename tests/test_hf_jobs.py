"""deploy/hf_jobs.py against the stand-in Hub: what it asks for, and when it asks again."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi, JobInfo, JobStage, Volume
from huggingface_hub._jobs_api import _create_job_spec

from deploy import hf_jobs
from deploy.hf_jobs import JobOptions, JobRunner, job_request, plan_costs, shown_command
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.tools.prices import load_prices
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.storage import RemoteFolder, RetryPolicy
from tests.commands import ROOT, Command, check
from tests.hub import TOKEN
from tests.support import write_recipe, write_shards
from tests.training.trainers import RECIPE, wait_until

OPTIONS = JobOptions(
    recipe="rn50-16ep",
    shards="hf://datasets/user/imagenet@main/shards",
    bucket="user/runs",
    repository="https://example.org/project.git",
    max_dollars=25.0,
    push_to="user/resnet-50",
)
RUN = "rn50-16ep/run"


@pytest.fixture
def jobs(hub, monkeypatch):
    """The stand-in Hub with an empty bucket; time between two looks at a job is short."""
    hub.buckets[OPTIONS.bucket] = {}
    hub.add_dataset("user/imagenet", {"shards/manifest.json": b"{}"})
    monkeypatch.setattr(hf_jobs, "POLL_SECONDS", 0.01)
    return hub


def run_jobs(hub, options=OPTIONS):
    JobRunner(options, plan_costs(options), HfApi(endpoint=hub.address), TOKEN).run()


def save_checkpoint(hub, samples):
    """Let the bucket say that the run has a checkpoint, as --sync would."""
    path = f"checkpoints/samples-{samples:012d}/model.safetensors"
    latest = {"files": [{"path": path, "bytes": 1, "sha256": "0" * 64}]}
    hub.buckets[OPTIONS.bucket][f"{RUN}/latest.json"] = ("0" * 64, json.dumps(latest).encode())


def test_a_job_is_asked_for_as_the_client_describes_it(jobs):
    run_jobs(jobs)
    (job,) = jobs.jobs
    asked = job["asked"]
    assert asked["secrets"] == {"HF_TOKEN": TOKEN}
    assert TOKEN not in json.dumps({**asked, "secrets": None})
    assert asked["flavor"] == "l4x4"
    assert asked["timeoutSeconds"] == 6 * 3600
    assert asked["volumes"] == [
        {
            "type": "dataset",
            "source": "user/imagenet",
            "mountPath": "/shards",
            "revision": "main",
            "readOnly": True,
            "path": "shards",
        },
        {"type": "bucket", "source": "user/runs", "mountPath": "/bucket"},
    ]
    assert [Volume(**volume).to_dict() for volume in asked["volumes"]] == asked["volumes"]
    assert asked["command"][:2] == ["bash", "-ec"]
    info = JobInfo(**job)
    assert (info.status.stage, info.labels) == (JobStage.COMPLETED, asked["labels"])


@pytest.mark.multiprocess
def test_the_printed_command_asks_for_the_same_job_and_has_no_token(jobs, tmp_path):
    request = job_request(OPTIONS, plan_costs(OPTIONS), OPTIONS.hours)
    shown = shown_command(request)
    assert TOKEN not in shown
    environment = os.environ | {"HF_ENDPOINT": jobs.address, "HF_TOKEN": TOKEN}
    words = shlex.split(shown)
    words[0] = str(Path(sys.executable).parent / "hf")
    subprocess.run(words, check=True, env=environment | {"HF_HOME": str(tmp_path)}, timeout=60)
    run_jobs(replace_jobs(jobs))
    by_hand, ours = (job["asked"] for job in jobs.jobs)
    for asked in (by_hand, ours):
        asked["labels"].pop("name")  # a hash of how it was asked for
    assert by_hand == ours


def replace_jobs(hub):
    """Let the jobs so far belong to another run."""
    for job in hub.jobs:
        job["labels"] = {**job["labels"], hf_jobs.LABEL: "another"}
    return hub


def test_what_is_printed_is_what_run_job_would_send():
    request = job_request(OPTIONS, plan_costs(OPTIONS), 1.5)
    given = {name: value for name, value in request.items() if name != "namespace"}
    spec = _create_job_spec(env=None, secrets=None, **given)
    assert spec["timeoutSeconds"] == 5400
    assert spec["labels"] == {hf_jobs.LABEL: "rn50-16ep"}
    assert spec["dockerImage"] == "python:3.12"


def test_the_job_runs_commands_that_our_programs_take(monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = hf_jobs.script(OPTIONS, plan_costs(OPTIONS), 6.0).splitlines()
    programs = Counter(shlex.split(line)[0] for line in lines)
    assert programs["python"] == 4
    assert programs["accelerate"] == 1
    for line in lines:
        check(Command(ROOT / "deploy" / "hf_jobs.py", line, "a job"))
    assert "push" not in hf_jobs.script(replace(OPTIONS, push_to=None), plan_costs(OPTIONS), 6.0)


def test_training_stops_before_the_job_does():
    limit = hf_jobs.time_limit(6.0 - OPTIONS.spare_hours)
    assert limit[0] == "--max-hours"
    assert float(limit[1]) < 6.0
    assert shlex.join(limit) in hf_jobs.script(OPTIONS, plan_costs(OPTIONS), 6.0)


def test_jobs_are_submitted_until_one_has_done_everything(jobs):
    def run(job):
        number = len(jobs.jobs)
        save_checkpoint(jobs, 1000 * number)
        return "ERROR" if number < 3 else "COMPLETED"

    jobs.run_job = run
    run_jobs(jobs)
    assert [job["status"]["stage"] for job in jobs.jobs] == ["ERROR", "ERROR", "COMPLETED"]
    commands = {tuple(job["asked"]["command"]) for job in jobs.jobs}
    assert len(commands) == 1
    run_jobs(jobs)  # there is nothing left to do
    assert len(jobs.jobs) == 3


def test_a_job_that_saved_nothing_new_is_not_repeated(jobs):
    save_checkpoint(jobs, 1000)
    jobs.run_job = lambda job: "ERROR"
    with pytest.raises(InputError, match="no new checkpoint"):
        run_jobs(jobs)
    assert len(jobs.jobs) == 1


def test_a_job_that_was_cancelled_is_not_repeated(jobs):
    def run(job):
        save_checkpoint(jobs, 1000)
        return "CANCELED"

    jobs.run_job = run
    with pytest.raises(InputError, match="CANCELED"):
        run_jobs(jobs)
    assert len(jobs.jobs) == 1


def test_a_call_that_was_interrupted_waits_for_the_job_that_runs(jobs):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HfApi, "inspect_job", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_jobs(jobs)
    run_jobs(jobs)
    assert [job["status"]["stage"] for job in jobs.jobs] == ["COMPLETED"]


def test_all_jobs_together_cost_no_more_than_the_ceiling(jobs):
    price = load_prices().instances["l4x4"].on_demand

    def run(job):  # until its timeout
        save_checkpoint(jobs, 1000 * len(jobs.jobs))
        job["durations"]["runningSecs"] = job["asked"]["timeoutSeconds"]
        return "ERROR"

    jobs.run_job = run
    with pytest.raises(InputError, match="no job fits into the rest"):
        run_jobs(jobs)
    seconds = [job["durations"]["runningSecs"] for job in jobs.jobs]
    assert seconds[0] == 6 * 3600
    assert 0.9 * OPTIONS.max_dollars < sum(seconds) * price / 3600 <= OPTIONS.max_dollars


def test_nothing_is_submitted_that_is_estimated_to_cost_more(jobs):
    with pytest.raises(InputError, match="--max-dollars 25"):
        run_jobs(jobs, replace(OPTIONS, recipe="rn50-88ep"))
    assert jobs.jobs == []
    plan = plan_costs(replace(OPTIONS, recipe="rn50-88ep", max_dollars=100.0))
    assert plan.num_jobs == 4
    assert plan.dollars == pytest.approx(plan.price * (plan.hours + 4 * OPTIONS.spare_hours))


def test_what_a_job_would_mount_must_exist(jobs):
    revision = jobs.repos["datasets/user/imagenet"].commits[-1][0]
    options = replace(OPTIONS, shards=f"hf://datasets/user/imagenet@{revision}/shards")
    run_jobs(jobs, options)
    for other, message in (
        (replace(options, shards="hf://datasets/user/none"), "hf://datasets/user/none"),
        (replace(options, shards="hf://datasets/user/imagenet@v9"), "imagenet@v9"),
        (replace(options, bucket="user/none"), "hf buckets create user/none"),
    ):
        with pytest.raises(InputError, match=message):
            run_jobs(jobs, other)
    assert len(jobs.jobs) == 1


def test_a_token_that_the_hub_refuses_is_one_message(jobs):
    with pytest.raises(InputError, match="the Hub answered with an error") as raised:
        JobRunner(OPTIONS, plan_costs(OPTIONS), HfApi(endpoint=jobs.address), "hf_other").run()
    assert "hf_other" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": "/data/shards"}, "--shards /data/shards"),
        ({"shards": "hf://user/model"}, "--shards hf://user/model"),
        ({"bucket": "runs"}, "--bucket runs"),
        ({"bucket": "hf://buckets/user/runs"}, "OWNER/NAME"),
        ({"push_to": "resnet-50"}, "--push-to resnet-50"),
        ({"max_dollars": 0.0}, "--max-dollars"),
        ({"hours": 0.2}, "--hours 0.2 leaves no time"),
        ({"flavor": "g6.12xlarge"}, "no machine of the Hub's"),
        ({"flavor": "h200x2"}, "no file for"),
        ({"flavor": "tpu"}, "no price for 'tpu'"),
    ],
)
def test_what_cannot_be_right_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        plan_costs(replace(OPTIONS, **changes))


def test_a_dry_run_needs_neither_a_network_nor_a_token(monkeypatch, capsys):
    words = ["--recipe", "rn50-16ep", "--shards", OPTIONS.shards, "--bucket", "user/runs"]
    words += ["--repository", OPTIONS.repository, "--max-dollars", "25", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["hf_jobs", *words])
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(hf_jobs, "HfApi", None)
    hf_jobs.main()
    out = capsys.readouterr().out
    assert out.startswith("estimate: ")
    assert "\nhf jobs run " in out


def test_files_of_a_bucket_are_written_read_listed_and_removed(jobs, tmp_path):
    folder = RemoteFolder("hf://buckets/user/runs/one")
    for name, content in (("objects/a", b"first"), ("objects/b", b"x" * 100_000)):
        (tmp_path / "file").write_bytes(content)
        folder.upload(tmp_path / "file", name)
    assert sorted(folder.names("objects")) == ["a", "b"]
    folder.download("objects/b", tmp_path / "b", num_bytes=100_000)
    assert (tmp_path / "b").read_bytes() == b"x" * 100_000
    (tmp_path / "file").write_bytes(b"second")
    folder.upload(tmp_path / "file", "objects/a")
    assert folder.read("objects/a", 0, 6) == b"second"
    folder.remove("objects/b")
    assert folder.names("objects") == ["a"]
    absent = RemoteFolder("hf://buckets/user/none", retry_policy=RetryPolicy(tries=1))
    with pytest.raises(InputError, match="hf://buckets/user/none"):
        absent.upload(tmp_path / "file", "a")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_a_job_that_was_killed_is_followed_by_one_that_finishes_the_run(
    jobs, tmp_path, monkeypatch
):
    """The script of each job, on this machine: folders as mounts, a `pip` that installs nothing."""
    write_shards(tmp_path / "shards", train=[30, 31, 22], validation=[6, 15])
    recipe = write_recipe(tmp_path, RECIPE)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "pip").write_text("#!/bin/sh\n")
    (programs / "pip").chmod(0o755)
    places = {"SHARDS": "shards", "BUCKET": "bucket", "WORK": "work"}
    for name, folder in places.items():
        monkeypatch.setattr(hf_jobs, name, str(tmp_path / folder))
    monkeypatch.setattr(hf_jobs, "time_limit", lambda hours: ["--checkpoint-steps", "5"])
    environment = os.environ | {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_ENDPOINT": jobs.address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",  # for the model's repository; buckets have nothing else
    }
    environment.pop("PYTHONPATH", None)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    options = replace(OPTIONS, recipe=str(recipe), repository=str(ROOT), run="rn50-16ep")
    options = replace(options, revision=head.stdout.strip())
    plan = replace(plan_costs(OPTIONS), config="accelerate_configs/cpu.yaml", workers=1)

    def run(job):
        shutil.rmtree(tmp_path / "work", ignore_errors=True)  # the next job has another machine
        asked = job["asked"]
        secrets = environment | asked["secrets"]
        log = (tmp_path / f"{job['id']}.log").open("w", encoding="utf-8")
        process = subprocess.Popen(
            asked["command"], env=secrets, stdout=log, stderr=log, start_new_session=True
        )
        if job["id"] == "job0":
            wait_until(lambda: f"{RUN}/latest.json" in jobs.buckets[OPTIONS.bucket])
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        log.close()
        print(Path(log.name).read_text(encoding="utf-8"))
        return "ERROR" if code else "COMPLETED"

    jobs.run_job = run
    JobRunner(options, plan, HfApi(endpoint=jobs.address), TOKEN).run()
    assert [job["status"]["stage"] for job in jobs.jobs] == ["ERROR", "COMPLETED"]
    starts = [line["samples_seen"] for line in read_metrics(tmp_path / "work" / "run", "start")]
    assert len(starts) == 2
    assert starts[1] > starts[0] == 0
    metrics = tmp_path / "bucket" / "rn50-16ep" / "evaluation" / "metrics.json"
    (first, *_) = json.loads(metrics.read_text())["results"]
    assert first["num_images"] == 21
    _, pushed = jobs.repos["models/user/resnet-50"].at("main")
    assert "model.safetensors" in pushed
    assert b"<!--metrics.json results.0.top1-->" in pushed["README.md"]
