"""Trainers that start at once: forked from a process that has imported everything.

They are processes of their own, with their own signals and exit codes, and run the whole script;
what they do not repeat is the seconds that importing takes. The process that forks them is itself
a fork of pytest's, made before the first test: it has no threads and nothing that a test changed.
"""

import contextlib
import functools
import importlib
import json
import logging
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import psutil

import train_accelerate
from imagenet_rn50.runs.checkpoint import checkpoint_folders, newest_checkpoint
from imagenet_rn50.runs.metrics import read_metrics
from tests.support import free_ports

ROOT = Path(__file__).parents[2]
PRELOADED = ("matplotlib.figure", "torch.utils.tensorboard", "imagenet_rn50.training.trainer")
PATIENCE_S = 120
EXIT_INTERRUPTED = 75

# Long enough to be met in the middle, and with everything that a checkpoint must hold.
RECIPE = """\
epochs: 6
global_batch: 8
micro_batch: 4
ema_decay: 0.9
mixup_alpha: 0.2
model: {embedding_size: 16, hidden_sizes: [16, 16], depths: [1, 1], layer_type: basic}
data: {train_size: 32, eval_size: 32, eval_resize: 36, shuffle_window: 2}
optimizer: {lr: 0.05}
schedule: {name: constant, warmup_epochs: 1.0, plateau_patience: 1, plateau_threshold: 0.9}
"""
TRAIN_SIZES, VALIDATION_SIZES = [16, 15, 12], [3, 6]  # of shards, in pictures
NUM_TRAIN, NUM_EPOCHS = sum(TRAIN_SIZES), 6  # 33 steps


@dataclass
class Trainer:
    """One process that trains."""

    server: "Trainers"
    pid: int
    log: Path
    run: Path
    num_before: int

    def send(self, number):
        """Sends a signal to it and to its loader workers, as a terminal and systemd do."""
        os.killpg(self.pid, number)

    def kill(self):
        """Kills it and its loader workers, as a machine that vanishes does."""
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self):
        """Returns its exit code; minus the signal, where one killed it."""
        return os.waitstatus_to_exitcode(self.server.ask({"wait": self.pid}))

    def until(self, happened, every_s=0.005):
        """Waits until something is so."""
        wait_until(
            lambda: happened() or not psutil.pid_exists(self.pid), self.said, every_s=every_s
        )
        return self

    def until_trained(self):
        """Waits for a line about this trainer's own steps."""
        return self.until(lambda: len(lines_of(self.run, "train")) > self.num_before)

    def said(self):
        return self.log.read_text(encoding="utf-8")


class Server:
    """A fork of this process that forks a trainer for each order."""

    def __init__(self):
        theirs, self._orders = os.pipe()
        self._answers, ours = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._orders)
            os.close(self._answers)
            _serve(theirs, ours)
        os.close(theirs)
        os.close(ours)

    def ask(self, order):
        os.write(self._orders, json.dumps(order).encode() + b"\n")
        return json.loads(os.read(self._answers, 100))

    def close(self):
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


class Trainers:
    """Starts trainers.

    Args:
        folder: Where their logs are written.
        server: Forks them.
    """

    def __init__(self, folder, server):
        self._folder, self._server = folder, server
        self._count = 0
        self.ask = server.ask

    def start(self, tiny, run, *more, **options):
        """Starts a trainer on the tiny shards and recipe."""
        words = ["train_accelerate.py", "--recipe", str(tiny / "tiny.yaml"), "--run", str(run)]
        words += ["--shards", str(tiny / "shards"), "--workers", "0", *more]
        return self.start_as_told(words, run, **options)

    def start_as_told(self, words, run, *, largest_file=None, log=None, plots=False, **environment):
        """Starts a trainer by its command line; drawing plots would take it seconds."""
        self._count += 1
        if log is None:
            log = self._folder / f"trainer-{self._count}.log"
            log.touch()
        order = {"words": words, "log": str(log), "limit": largest_file, "plots": plots}
        num_before = len(lines_of(run, "train"))
        pid = self.ask(order | {"environment": environment})
        return Trainer(self, pid, log, run, num_before)

    def train(self, tiny, run, *more, code=0, **options):
        """Lets a trainer run to its end; returns what it said."""
        trainer = self.start(tiny, run, *more, **options)
        ended = trainer.wait()
        assert ended == code, trainer.said()
        return trainer.said()

    def start_two_ranks(self, tiny, run, *more):
        """Starts two gloo ranks, each told its place as launchers tell it."""
        [port] = free_ports()
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return [
            self.start(tiny, run, *more, **place, RANK=str(rank), LOCAL_RANK=str(rank))
            for rank in (0, 1)
        ]

    def train_on_two_ranks(self, tiny, run, *more):
        """Lets two gloo ranks run to their end."""
        for rank in self.start_two_ranks(tiny, run, *more):
            assert rank.wait() == 0, rank.said()


def lines_of(run, kind):
    """Returns lines of a run's journal, maybe none yet."""
    return read_metrics(run, kind) if (run / "metrics.jsonl").is_file() else []


def hashes(run):
    """Returns the SHA-256 of each file of a run's newest checkpoint."""
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    return {name: entry["sha256"] for name, entry in checkpoint.files.items()}


def steps_saved(run):
    """Returns the progress of each checkpoint of a run."""
    return [int(folder.name.split("-")[1]) for folder in checkpoint_folders(run / "checkpoints")]


def assert_same_run(run, other):
    assert hashes(run) == hashes(other)
    assert measured(run) == measured(other)


def measured(run):
    """Returns what a run wrote down, apart from what each process tells of itself and its speed."""
    keys = ("kind", "samples_seen", "lr", "sample_hash", "top1", "loss", "is_best")
    validations = [{key: line.get(key) for key in keys} for line in read_metrics(run, "validation")]
    return validations, read_metrics(run, "train")[-1]["sample_hash"]


def wait_until(happened, said=lambda: "", patience_s=PATIENCE_S, every_s=0.005):
    """Waits until something is so, patiently, for the machine may be busy."""
    deadline = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < deadline, said()
        time.sleep(every_s)


def touch_plot(run):
    """Stands for `draw_plots`, which takes seconds: shows that it was called."""
    (run / "plots").mkdir(exist_ok=True)
    (run / "plots" / "loss.png").touch()


def _serve(orders, answers):
    """Fork a trainer for each order, and answer how those that are asked for ended."""
    try:
        logging.getLogger().handlers.clear()  # pytest's
        warnings.resetwarnings()  # to what Python starts with; pytest makes them errors
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning):
            warnings.simplefilter("ignore", category)
        os.environ["ACCELERATE_USE_CPU"] = "1"
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make test` ignores it
        for line in os.fdopen(orders):
            warm_up()
            order = json.loads(line)
            if "wait" in order:
                _, answer = os.waitpid(order["wait"], 0)
            else:
                answer = os.fork()
                if answer == 0:
                    _be_trainer(order)
            os.write(answers, f"{answer}\n".encode())
    finally:
        os._exit(0)


@functools.cache
def warm_up():
    """Import and parse before the first trainer what each would import and parse again."""
    for name in PRELOADED:
        importlib.import_module(name)
    train_accelerate.parse(["--recipe", "digits", "--shards", "none", "--run", "none"])


def _be_trainer(order):
    """Runs the script in this process."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdin = open(os.devnull, encoding="utf-8")
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)
    os.environ.update(order["environment"])
    if order["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
    if not order["plots"]:
        vars(sys.modules["imagenet_rn50.training.trainer"])["draw_plots"] = touch_plot
    sys.argv = order["words"]
    code = 1
    try:
        train_accelerate.main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
