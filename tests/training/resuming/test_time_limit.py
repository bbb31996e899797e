"""A run with a time limit has saved and exited before it, and loses no step."""

import itertools
import sys
import time
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import train_accelerate
from imagenet_rn50.evaluation import evaluate
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.training import checkpointer, state, time_limit, trackers, trainer
from imagenet_rn50.training.preemption import EXIT_INTERRUPTED
from imagenet_rn50.training.time_limit import find_deadline
from imagenet_rn50.training.trainer import Trainer
from imagenet_rn50.utils.errors import EXIT_WRONG_INPUT, InputError
from tests.training.resuming.support import NUM_STEPS, assert_same_run, refusal, train
from tests.training.trainers import hashes, lines_of, steps_saved


class Clock:
    """Stands for the module `time`: it advances when a test says so."""

    def __init__(self):
        self.now = time.time()

    def time(self):
        return self.now

    monotonic = perf_counter = time


class Inline:
    """Stands for a ThreadPoolExecutor: saves at once, so that a test is the same each time."""

    def __init__(self, **_):
        pass

    def submit(self, function, *arguments):
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self):
        pass


START_S, EXIT_S = 3.0, 30.0


class World:
    """Where everything that takes time takes as long as a test says, and the end as long as it may.

    Args:
        patch: Undone by the test.
        batch_seconds: How long each batch takes in turn, of training and of validation.
        save_seconds: How long each save takes in turn.
        assumed_seconds: How long a save is assumed to take before one is measured.
    """

    def __init__(self, patch, batch_seconds, save_seconds, assumed_seconds=1.0):
        self.clock, self.num_steps = Clock(), 0
        batches, saves = itertools.cycle(batch_seconds), itertools.cycle(save_seconds)
        for module in (time_limit, checkpointer, trainer):
            patch.setattr(module, "time", self.clock)
        patch.setattr(checkpointer, "ThreadPoolExecutor", Inline)

        def taking(seconds, function):
            def slow(*arguments, **options):
                self.clock.now += next(seconds)
                return function(*arguments, **options)

            return slow

        def train_step(*arguments, **options):
            plain_step(*arguments, **options)
            self.num_steps += 1

        def validate_batches(*arguments, on_batch, **options):
            return plain_validation(*arguments, on_batch=taking(batches, on_batch), **options)

        plain_step, plain_validation = Trainer.train_step, evaluate.validate_batches
        starts, exits = itertools.repeat(START_S), itertools.repeat(EXIT_S)
        patch.setattr(Trainer, "train_step", train_step)
        patch.setattr(Trainer, "train_loader", taking(starts, Trainer.train_loader))
        patch.setattr(trainer, "checkpoint_bytes", lambda *_: int(assumed_seconds * 20e6))
        patch.setattr(Trainer, "loss", taking(batches, Trainer.loss))
        patch.setattr(trainer, "validate_batches", validate_batches)
        patch.setattr(trainer, "end_training", taking(exits, trackers.end_training))
        patch.setattr(checkpointer, "write_state", taking(saves, state.write_state))

    def run_for(self, tiny, run, seconds):
        """Runs one process of a run that may take some seconds; returns its exit code."""
        stop_at = datetime.fromtimestamp(self.clock.now + seconds).astimezone()
        try:
            code = train(tiny, run, stop_at=stop_at)
        except InputError:
            code = EXIT_WRONG_INPUT
        assert self.clock.now <= stop_at.timestamp()
        return code


@pytest.mark.numeric
@settings(max_examples=4)
@given(
    batch_seconds=st.lists(st.floats(1, 3), min_size=5, max_size=30),
    save_seconds=st.lists(st.floats(2, 6), min_size=1, max_size=5),
    limits=st.lists(st.floats(45, 130), min_size=1, max_size=5),
)
def test_whatever_takes_how_long_no_step_is_lost_and_no_time_overrun(
    tiny, finished, tmp_path_factory, batch_seconds, save_seconds, limits
):
    # Each takes at most three times as long as the one that was measured or assumed before it.
    run, longer, codes = tmp_path_factory.mktemp("limited") / "run", 0, set()
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch, batch_seconds, save_seconds, assumed_seconds=2.0)
        for limit in itertools.cycle(limits):
            before = steps_saved(run), lines_of(run, "validation")
            codes.add(code := world.run_for(tiny, run, limit + longer))
            after = steps_saved(run), lines_of(run, "validation")
            longer += 5 * (code == EXIT_WRONG_INPUT)  # too short to do anything
            assert (before == after) == (code == EXIT_WRONG_INPUT)
            if code == 0:
                break
    assert codes <= {0, EXIT_INTERRUPTED, EXIT_WRONG_INPUT}
    assert world.num_steps == NUM_STEPS
    assert_same_run(run, finished)


def test_a_validation_that_cannot_finish_in_time_is_left_to_the_next_process(
    tiny, finished, tmp_path, monkeypatch
):
    run, validated = tmp_path / "run", []
    world = World(monkeypatch, [1.0], [1.0])
    plain = vars(trainer)["validate_batches"]  # the slow one

    def validate_batches(*arguments, **options):
        validated.append(world.clock.now)
        return plain(*arguments, **options)

    monkeypatch.setattr(trainer, "validate_batches", validate_batches)
    # An epoch takes 6 s, a validation of two times three batches 6 s, a save 1 s. After the second
    # epoch 39 s are left: enough for what has to fit, but not for a validation, too.
    assert world.run_for(tiny, run, START_S + 6 + 6 + 1 + 6 + 39) == EXIT_INTERRUPTED
    assert len(validated) == 2
    assert steps_saved(run)[-1] == 48
    assert world.run_for(tiny, run, 1000) == 0
    assert world.num_steps == NUM_STEPS
    assert_same_run(run, finished)


def test_a_limit_in_which_nothing_is_done_is_refused_and_would_not_be_repeated_for_ever(
    tiny, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    world = World(monkeypatch, [40.0], [1.0])
    with pytest.raises(InputError, match="is too short"):  # by far, for a micro batch of 40 s
        train(tiny, run, stop_at=datetime.fromtimestamp(world.clock.now + 50))
    assert not steps_saved(run)
    assert not read_metrics(run, "stop")
    assert world.run_for(tiny, tmp_path / "none", 9) == EXIT_WRONG_INPUT
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("option", ["--stop-at", "--max-hours"])
def test_the_command_that_resumes_has_only_limits_of_use(
    option, tiny, tmp_path, monkeypatch, capsys
):
    limits = {"--stop-at": "2999-01-01T00:00Z", "--max-hours": "1000"}
    words = ["--recipe", str(tiny / "tiny.yaml"), "--shards", str(tiny / "shards"), "--workers=0"]
    words += ["--run", str(tmp_path / "run"), *itertools.chain(*limits.items())]
    monkeypatch.setattr(sys, "argv", ["train_accelerate.py", *words])
    config = train_accelerate.parse(words).checkpointing
    deadlines = {
        "--stop-at": find_deadline(None, config.stop_at),
        "--max-hours": find_deadline(config.max_hours, None),
    }
    monkeypatch.setattr(trainer, "find_deadline", lambda *_: deadlines[option])
    plain = time_limit.TimeLimit.is_reached
    monkeypatch.setattr(
        time_limit.TimeLimit,
        "is_reached",
        lambda *arguments: plain(*arguments) or len(lines_of(tmp_path / "run", "validation")) == 2,
    )
    with pytest.raises(SystemExit) as left:
        train_accelerate.main()
    assert left.value.code == EXIT_INTERRUPTED
    assert read_metrics(tmp_path / "run", "stop")[-1]["reason"].startswith(f"time limit: {option} ")
    command = capsys.readouterr().out.strip().splitlines()[-1]
    assert set(limits) - {"--stop-at"} <= set(command.split())
    assert ("--stop-at" in command.split()) == (option != "--stop-at")


def in_hours(hours):
    return datetime.now().astimezone() + timedelta(hours=hours)


@pytest.mark.parametrize("max_hours", [0.0, -1.0, float("nan"), float("inf")])
def test_hours_that_are_none_are_refused(max_hours, tiny, tmp_path):
    assert "--max-hours" in refusal(tiny, tmp_path / "run", max_hours=max_hours)


@pytest.mark.parametrize(
    "stop_at", [in_hours(-0.01), datetime(2020, 1, 1), datetime.min, datetime.max]
)
def test_a_time_in_the_past_or_out_of_range_is_refused(stop_at, tiny, tmp_path):
    if stop_at == datetime.max:
        stop_at = stop_at.replace(tzinfo=timezone(timedelta(hours=-14)))
    assert "--stop-at" in refusal(tiny, tmp_path / "run", stop_at=stop_at)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["soon", "1.5", "1700000000"])
def test_a_slurm_job_that_ended_or_has_no_number_for_it_is_refused(
    value, tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("SLURM_JOB_END_TIME", value)
    assert "SLURM_JOB_END_TIME" in refusal(tiny, tmp_path / "run")


def test_the_end_of_a_slurm_job_is_read_and_told(tiny, tmp_path, monkeypatch, capsys):
    end = int(time.time()) + 7200
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(end))
    assert train(tiny, tmp_path / "run", stop_at_step=1) == 0
    assert f"SLURM_JOB_END_TIME={end}, 2.00 h from now" in capsys.readouterr().out


def test_the_earliest_limit_counts_in_whatever_time_zone_it_is_given(monkeypatch):
    assert find_deadline(None, None) is None
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 7200))
    for zone in (UTC, timezone(timedelta(hours=9)), None):
        soon = in_hours(1).astimezone(zone).replace(microsecond=0)
        if zone is None:
            soon = soon.replace(tzinfo=None)  # as typed without an offset
        deadline = find_deadline(3, soon)
        assert deadline is not None
        assert deadline.time == soon.timestamp()
        assert datetime.fromisoformat(deadline.source.split()[1]).timestamp() == deadline.time
    for hours, stop_at, option in [(1.0, in_hours(1.5), "--max-hours"), (3.0, None, "SLURM")]:
        deadline = find_deadline(hours, stop_at)
        assert deadline is not None
        assert deadline.source.startswith(option)


def test_a_finished_run_needs_no_time(tiny, finished):
    before = hashes(finished)
    assert train(tiny, finished, stop_at=datetime(2020, 1, 1)) == 0
    assert hashes(finished) == before
