"""deploy/slurm.sbatch: what it passes on, to whom, and when it requeues its job."""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train_accelerate
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.tools.digits import write_ilsvrc
from tests.commands import ROOT, Command, check
from tests.training.trainers import assert_same_run, lines_of, steps_saved, wait_until

SCRIPT = ROOT / "deploy" / "slurm.sbatch"


def test_the_header_shows_commands_that_sbatch_and_training_take(monkeypatch):
    monkeypatch.chdir(ROOT)
    head = SCRIPT.read_text(encoding="utf-8").partition("#SBATCH")[0]
    found = re.findall(r"^#   (sbatch .*?[^\\])$", head, re.M | re.S)
    num_ranks = []
    for text in found:
        command = Command(SCRIPT, text.replace("\\\n#", " "), None)
        check(command)
        words = command.words
        options = dict(itertools.pairwise(words))
        num_ranks.append(int(options.get("--nodes", "1")) * int(options["--gpus-per-node"]))
        of_training = words[words.index("deploy/slurm.sbatch") + 1 :]
        recipe = train_accelerate.parse(of_training).hyperparameters
        assert recipe.accumulation(num_ranks[-1]) >= 1
    assert num_ranks == [4, 16]


# ------------------------------------------------------------------ with a stand-in for Slurm

# The launcher is as accelerate's: it has no handlers of its own, and exits with 1 after a failure.
LAUNCHER = """\
echo "$@" > launched
python3 -c "$TRAINER" &
wait $! || exit 1
"""
TRAINER = """\
import json, os, pathlib, signal, sys, time
def stop(*_):
    time.sleep(0.5)  # while it saves, its launcher has to live
    if os.getppid() != launcher: os._exit(3)
    pathlib.Path("run/metrics.jsonl").write_text(json.dumps({"kind": "stop"}) + "\\n")
    sys.exit(75)
launcher = os.getppid()
if os.environ["ENDS"] != "when told":
    sys.exit(int(os.environ["ENDS"]))
time.sleep(0.5)  # it starts: no handler yet
signal.signal(signal.SIGUSR1, stop)
while True: time.sleep(0.1)
"""


class Job:
    """The batch script with stand-ins for Slurm's commands and for the launcher."""

    def __init__(self, folder, *words, ends="when told", **environment):
        self.folder = folder
        programs = {
            "srun": 'echo $$ > task; shift; exec "$@"',
            "squeue": "echo 2999-01-01T00:00:00",
            "scontrol": 'echo "$@" > requeued',
            "accelerate": LAUNCHER,
        }
        for name, text in programs.items():
            program = folder / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
            program.chmod(0o755)
        (folder / "train_accelerate.py").touch()
        slurm = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "1"}
        slurm |= {"SLURM_GPUS_ON_NODE": "4", "ENDS": ends, "TRAINER": TRAINER}
        self.process = subprocess.Popen(
            ["bash", SCRIPT, *words],
            cwd=folder,
            env={"PATH": f"{folder}/bin:{os.environ['PATH']}"} | slurm | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def task(self):
        """Returns the process id of the task, once it has launched."""
        wait_until((self.folder / "launched").exists)
        return int((self.folder / "task").read_text())

    def wait(self):
        """Returns the exit code, what was said, and whether the job was requeued."""
        said, _ = self.process.communicate(timeout=60)
        requeued = self.folder / "requeued"
        assert not requeued.exists() or requeued.read_text() == "requeue 12345\n"
        return self.process.returncode, said, requeued.exists()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("whom", ["the task", "all its processes"])  # proctrack/cgroup, linuxproc
def test_a_signal_reaches_the_trainers_and_the_job_is_requeued_once_they_have_saved(
    folder, number, whom
):
    job = Job(folder, "--recipe", "digits", "--run", "run")
    task = job.task()
    os.kill(task, number)
    if whom == "all its processes":
        for pid in descendants(task):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    code, said, requeued = job.wait()
    assert (code, requeued) == (1, True), said


def descendants(pid):
    """Returns the process ids of launcher and trainers."""
    found = [pid]
    for parent in found:
        listed = subprocess.run(
            ["pgrep", "-P", str(parent)], capture_output=True, text=True, check=False
        )
        found += map(int, listed.stdout.split())
    return found[1:]


@pytest.mark.parametrize(("ends", "expected"), [("0", 0), ("2", 1)])
def test_a_job_that_is_finished_or_has_failed_is_not_requeued(folder, ends, expected):
    (folder / "run" / "metrics.jsonl").write_text('{"kind": "stop"}\n')
    os.utime(folder / "run" / "metrics.jsonl", (1e9, 1e9))  # of an earlier job
    code, said, requeued = Job(folder, "--run=run", ends=ends).wait()
    assert (code, requeued) == (expected, False), said


def test_a_job_that_fails_after_it_has_trained_is_not_requeued(folder):
    metrics = folder / "run" / "metrics.jsonl"
    metrics.write_text('{"kind": "stop"}\n{"kind": "start"}\n{"kind": "train"}\n')
    later = time.time() + 60
    os.utime(metrics, (later, later))  # written by this job
    code, said, requeued = Job(folder, "--run", "run", ends="2").wait()
    assert (code, requeued) == (1, False), said


def test_each_node_launches_its_ranks_of_all_and_on_one_gpu_there_is_one(folder):
    Job(folder, "--recipe", "a b", "--run", "run", ends="0").wait()
    words = (folder / "launched").read_text()
    options = "--num_machines 2 --machine_rank 1 --num_processes 8"
    assert options in words
    assert words.endswith("train_accelerate.py --recipe a b --run run\n")
    one = {"SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_NUM_NODES": "1"}
    Job(folder, "--run", "run", ends="0", **one).wait()
    assert "--num_machines" not in (folder / "launched").read_text()


@pytest.mark.parametrize(
    ("words", "environment", "named"),
    [
        ((), {}, "--run"),
        (("--run",), {}, "--run"),
        (("--run", "run"), {"SLURM_JOB_END_TIME": "1000000000"}, "--time"),
        (("--run", "run"), {"SLURM_GPUS_ON_NODE": ""}, "--gpus-per-node"),
    ],
)
def test_what_would_not_train_as_meant_is_refused(folder, words, environment, named):
    code, said, requeued = Job(folder, *words, **environment).wait()
    assert (code, requeued) == (2, False)
    assert named in said


def test_only_the_folder_of_the_project_is_one_to_submit_from(folder):
    job = ["bash", str(SCRIPT), "--run", "run"]
    done = subprocess.run(job, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--chdir" in done.stderr


# ------------------------------------------------------------------ on a real Slurm

DAEMONS = ("slurmctld", "slurmd", "sbatch", "munged")
SBIN = f"{os.environ['PATH']}:/usr/sbin"
needs_slurm = pytest.mark.skipif(
    not all(shutil.which(name, path=SBIN) for name in DAEMONS),
    reason="needs Slurm: apt-get install slurmctld slurmd slurm-client munge",
)


class Cluster:
    """Two nodes on this machine, started by tests/slurm_cluster.sh."""

    def __init__(self, folder):
        self.folder = folder
        self.process = subprocess.Popen(["bash", "tests/slurm_cluster.sh", folder], cwd=ROOT)
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ACCELERATE_USE_CPU": "1",
            "MIXED_PRECISION": "no",
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self):
        wait_until(lambda: self.ask("sinfo", "--noheader", "--format", "%T %D") == "idle 2")
        return self

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait()

    def ask(self, *words):
        """Returns what a command of Slurm says; nothing while it fails."""
        done = subprocess.run(
            words, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def submit(self, *words):
        number = self.ask("sbatch", "--parsable", *map(str, words))
        assert number
        return number

    def about(self, job, field):
        """Returns a field of what Slurm knows of a job."""
        told = dict(
            word.split("=", 1)
            for word in self.ask("scontrol", "show", "job", job).split()
            if "=" in word
        )
        return told.get(field)

    def wait(self, job, said=lambda: ""):
        """Returns the state in which a job has ended."""
        running = {"PENDING", "RUNNING", "COMPLETING", "REQUEUED", None}
        wait_until(lambda: self.about(job, "JobState") not in running, said, patience_s=600)
        return self.about(job, "JobState")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    pack(read_source(write_ilsvrc(folder / "source")), folder / "shards", PackOptions())
    return folder / "shards"


def training(shards, run, log, *more):
    """Returns the words of sbatch that train the digits on both nodes, a rank on each."""
    words = ["--output", log, "--nodes", 2, SCRIPT, "--recipe", "digits", "--shards", shards]
    return [*words, "--run", run, "--workers", 0, *more]


def until_trained(run, num_starts, log):
    """Waits until a run has started so often, and has trained since then."""

    def has_trained():
        kinds = " ".join(line["kind"] for line in lines_of(run, None))
        *before, now = kinds.split("start")
        return len(before) == num_starts and "train" in now

    wait_until(has_trained, log.read_text, patience_s=600)


@needs_slurm
@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(1800)
def test_a_job_preempted_and_requeued_twice_ends_with_the_weights_of_an_undisturbed_one(
    cluster, digits, tmp_path
):
    run, log = tmp_path / "run", tmp_path / "job.log"
    job = cluster.submit("--time", 60, *training(digits, run, log))
    for restarts in (1, 2):
        until_trained(run, restarts, log)
        urgent = cluster.submit(
            *("--partition", "urgent", "--nodes", 2, "--output", "/dev/null", "--wrap", "sleep 1")
        )
        assert cluster.wait(urgent, log.read_text) == "COMPLETED"
        assert cluster.about(job, "Restarts") == str(restarts)
    assert cluster.wait(job, log.read_text) == "COMPLETED", log.read_text()
    assert cluster.about(job, "Restarts") == "2"

    starts, stops = read_metrics(run, "start"), read_metrics(run, "stop")
    assert [line["world_size"] for line in starts] == [2, 2, 2]
    resumed_at = [line["samples_seen"] for line in starts[1:]]
    assert resumed_at == [line["samples_seen"] for line in stops]  # nothing was trained twice

    undisturbed = tmp_path / "undisturbed"
    job = cluster.submit("--time", 60, *training(digits, undisturbed, tmp_path / "other.log"))
    assert cluster.wait(job, (tmp_path / "other.log").read_text) == "COMPLETED"
    assert_same_run(run, undisturbed)


@needs_slurm
@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_a_job_whose_time_ends_is_requeued_and_one_that_is_cancelled_is_not(
    cluster, digits, tmp_path
):
    run, log = tmp_path / "run", tmp_path / "job.log"
    # Slurm checks every half minute what ends within 200 s and one minute: it sends the signal
    # after 100 to 130 s.
    limits = ("--time", 6, "--signal", "USR1@200", "--nodes", 1, "--output", log)
    words = ("--recipe", "digits", "--shards", digits, "--run", run, "--epochs", 5000)
    job = cluster.submit(*limits, SCRIPT, *words, "--workers", 0)
    until_trained(run, 1, log)
    assert "SLURM_JOB_END_TIME=" in log.read_text()
    until_trained(run, 2, log)
    assert cluster.about(job, "Restarts") == "1"
    stop = read_metrics(run, "stop")[-1]
    assert stop["reason"] == "received SIGUSR1"
    assert stop["samples_seen"] == read_metrics(run, "start")[-1]["samples_seen"] > 0

    cluster.ask("scancel", job)
    assert cluster.wait(job, log.read_text) == "CANCELLED"
    wait_until(lambda: len(read_metrics(run, "stop")) == 2, log.read_text)
    assert steps_saved(run)[-1] == read_metrics(run, "stop")[-1]["samples_seen"]
    assert cluster.about(job, "Restarts") == "1"
