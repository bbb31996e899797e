"""`--profile N`: a trace and a table of some steps, and the same run as without."""

import gzip
import json
from contextlib import suppress

import pytest
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from imagenet_rn50.training.preemption import StopTraining
from imagenet_rn50.training.profiler import StepProfiler, covered, table
from tests.training.trainers import assert_same_run

pytestmark = pytest.mark.multiprocess


def traces(run):
    """Returns the events of each trace of a run, by the name of its file."""
    return {
        path.name.removesuffix(".json.gz"): json.loads(gzip.decompress(path.read_bytes()))[
            "traceEvents"
        ]
        for path in sorted((run / "profile").glob("*.json.gz"))
    }


def test_profiled_steps_have_a_trace_and_a_table_and_change_nothing(tiny, trainers, finished):
    run = tiny / "profiled"
    said = trainers.train(tiny, run, "--profile", "3", "--stop-at-step", "9")
    trainers.train(tiny, run, "--profile", "2")
    assert_same_run(run, finished)
    first, second = traces(run).items()
    name, events = first
    assert name == "steps-000006-000008-rank-0"  # an epoch ends in between
    assert second[0] == "steps-000015-000016-rank-0"
    assert sum(event.get("name") == "training step" for event in events) == 3
    assert any(event.get("name") == "aten::convolution_backward" for event in events)
    text = (run / "profile" / f"{name}.txt").read_text()
    assert text in said
    assert "host gaps" in text
    files = {f"{name}.{ending}" for name, _ in (first, second) for ending in ("json.gz", "txt")}
    assert {path.name for path in (run / "profile").iterdir()} == files


@pytest.mark.slow
def test_each_rank_has_a_trace_of_the_same_steps(tiny, trainers):
    run = tiny / "profiled-ranks"
    trainers.train_on_two_ranks(tiny, run, "--profile", "2", "--stop-at-step", "9")
    assert list(traces(run)) == ["steps-000006-000007-rank-0", "steps-000006-000007-rank-1"]


def take_steps(profiler, num_steps):
    for number in range(1, num_steps + 1):
        with profiler.step(number):
            torch.ones(2) + 1
    profiler.close()


@pytest.mark.parametrize(("num_steps", "profiled"), [(8, ["steps-000006-000008-rank-0"]), (5, [])])
def test_a_run_that_ends_before_has_a_profile_of_fewer_steps(tmp_path, num_steps, profiled, capsys):
    take_steps(StepProfiler(tmp_path / "profile", 50, torch.device("cpu"), 0), num_steps)
    assert f"{num_steps - 5} of 50 steps were profiled" in capsys.readouterr().out
    assert list(traces(tmp_path)) == profiled


def test_a_step_that_is_told_to_stop_is_not_counted(tmp_path):
    profiler = StepProfiler(tmp_path / "profile", 50, torch.device("cpu"), 0)
    for number in range(1, 9):
        with suppress(StopTraining), profiler.step(number):
            torch.ones(2) + 1
            if number == 8:
                raise StopTraining
    profiler.close()
    assert list(traces(tmp_path)) == ["steps-000006-000007-rank-0"]
    [text] = (path.read_text() for path in (tmp_path / "profile").glob("*.txt"))
    assert "2 steps" in text


def test_a_full_disk_costs_the_profile_and_not_the_run(tmp_path, capsys):
    (tmp_path / "profile").write_text("in the way")
    take_steps(StepProfiler(tmp_path / "profile", 1, torch.device("cpu"), 0), 8)
    assert "profile cannot be written" in capsys.readouterr().out


class Event:
    def __init__(self, name, begin, end, *, device=DeviceType.CPU, spent=0.0, annotation=False):
        self.name, self.device_type, self.is_user_annotation = name, device, annotation
        self.self_cpu_time_total = self.self_device_time_total = spent
        self.time_range = self
        self.start, self.end = begin, end

    def elapsed_us(self):
        return self.end - self.start


GPU = DeviceType.CUDA
# Two steps of 100 us, and a validation between them.
EVENTS = [
    Event("training step", 0, 100, annotation=True),
    Event("training step", 200, 300, annotation=True),
    Event("training step", 0, 300, device=GPU, annotation=True),  # as the trace repeats it
    Event("aten::conv", 0, 20, spent=30),
    Event("aten::relu", 10, 60, spent=10),
    Event("aten::conv", 120, 180, spent=60),  # of the validation
    Event("aten::conv", 200, 250, spent=40),
    Event("conv kernel", 10, 40, device=GPU),
    Event("other kernel", 30, 60, device=GPU),
    Event("conv kernel", 120, 180, device=GPU),
    Event("conv kernel", 250, 320, device=GPU),  # ends after the last step
]


def test_a_gpu_whose_kernels_may_not_be_recorded_is_not_called_idle():
    kept = [event for event in EVENTS if "kernel" not in event.name]
    assert "no kernel was recorded" in table(kept, 2, on_gpu=True)


def rows(text):
    """Returns share, ms a step and calls a step of each operation."""
    lines = text.splitlines()
    return {line.split(maxsplit=3)[3]: line.split(maxsplit=3)[:3] for line in lines[4:]}


def test_on_a_gpu_gaps_are_when_no_kernel_runs_and_operations_are_timed_on_the_device():
    text = table(EVENTS, 2, on_gpu=True)
    assert "2 steps of 0.10 ms" in text
    assert "50.0%" in text  # kernels in 10 to 60 and 250 to 300
    assert rows(text) == {
        "aten::conv": ["35.0%", "0.035", "1.0"],
        "aten::relu": ["5.0%", "0.005", "0.5"],
        "(kernels of no operator)": ["25.0%", "0.025", "0.0"],
    }


def test_on_a_cpu_gaps_are_when_no_operator_runs():
    text = table(EVENTS, 2, on_gpu=False)
    assert "45.0%" in text  # operators in 0 to 60 and 200 to 250
    assert rows(text) == {
        "aten::conv": ["35.0%", "0.035", "1.0"],
        "aten::relu": ["5.0%", "0.005", "0.5"],
    }


def test_overlapping_intervals_cover_a_span_once():
    spans = [(0.0, 10.0), (20.0, 30.0), (40.0, 50.0)]
    assert covered([], spans) == 0
    assert covered([(-5, 5), (2, 4), (3, 25), (24, 26), (60, 70)], spans) == 16
    assert covered([(0, 100)], spans) == 30


@pytest.mark.gpu
def test_on_a_gpu_the_trace_has_kernels_and_their_time_is_that_of_operators(tmp_path):
    device = torch.device("cuda", 0)
    profiler = StepProfiler(tmp_path / "profile", 3, device, 0)
    matrix = torch.rand(2048, 2048, device=device)
    for number in range(1, 12):
        with profiler.step(number):
            matrix = matrix @ matrix.softmax(0)
    profiler.close()
    [(name, events)] = traces(tmp_path).items()
    assert any(event.get("cat") == "kernel" for event in events)
    found = rows((tmp_path / "profile" / f"{name}.txt").read_text())
    assert "aten::mm" in found
    assert float(found["aten::mm"][0].removesuffix("%")) > 0
