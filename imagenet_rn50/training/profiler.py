"""A profile of some training steps, on request: where their time goes, on each rank.

    RUN/profile/
      steps-000007-000026-rank-0.json.gz   Chrome trace: https://ui.perfetto.dev opens it
      steps-000007-000026-rank-0.txt       the heaviest operations, and the host gaps

Profiling changes no result. Steps take longer while they are profiled, and the trace is written
between two steps, so the log line that includes them shows a lower speed.
"""

from __future__ import annotations

import bisect
import gzip
import itertools
import math
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from imagenet_rn50.utils.files import atomic_file, write_text
from imagenet_rn50.utils.formatting import counted
from imagenet_rn50.utils.logging import logger

Interval: TypeAlias = tuple[float, float]

_SPAN = "training step"
_NUM_WARM_UP_STEPS = 5  # not profiled: they compile, choose algorithms, allocate
_NUM_ROWS = 10
_OTHER = "(kernels of no operator)"


class StepProfiler:
    """Profile `num_steps` steps after a warm-up, once in the life of this process.

    Args:
        folder: Where to write.
        num_steps: Number of steps; None profiles nothing.
        device: This rank's device.
        rank: This rank; rank 0 prints its table.
    """

    def __init__(
        self, folder: Path, num_steps: int | None, device: torch.device, rank: int
    ) -> None:
        self._folder = folder
        self._num_asked = num_steps or 0
        self._device = device
        self._rank = rank
        self._num_seen = self._num_profiled = 0
        self._first = 0
        self._is_open = num_steps is not None
        self._profile: profile | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Profile the body, one step of training, if it is time to.

        Args:
            number: The step of the run, from 1.
        """
        if not self._is_open:
            yield
            return
        self._num_seen += 1
        if self._num_seen == _NUM_WARM_UP_STEPS:
            self._profile = self._start()
        if self._num_seen <= _NUM_WARM_UP_STEPS:
            yield
            if self._profile:
                self._synchronize()  # what earlier steps launched is not part of the profile
                self._profile.step()
            return
        assert self._profile is not None
        self._first = self._first or number
        is_last = self._num_profiled + 1 == self._num_asked
        with record_function(_SPAN):
            yield
            if is_last:
                self._synchronize()
        self._num_profiled += 1
        if is_last:
            self.close()
        else:
            self._profile.step()

    def close(self) -> None:
        """Write what was profiled, if that was not done."""
        if not self._is_open:
            return
        self._is_open = False
        if self._profile:
            self._profile.stop()
        if self._num_profiled < self._num_asked:
            self._log(
                f"{self._num_profiled} of {self._num_asked} steps were profiled, after a "
                f"warm-up of {_NUM_WARM_UP_STEPS}: there were no more"
            )
        if not self._profile or not self._num_profiled:
            return
        try:
            self._log(self._write(self._profile))
        except OSError as error:  # training is worth more than its profile
            logger.info(f"the profile cannot be written: {error}")
        self._profile = None

    def _write(self, stopped: profile) -> str:
        """Write trace and table; return the table."""
        last = self._first + self._num_profiled - 1
        name = f"steps-{self._first:06d}-{last:06d}-rank-{self._rank}"
        trace = self._folder / f"{name}.json.gz"
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder) as temporary:
            plain = Path(temporary) / "trace.json"
            stopped.export_chrome_trace(str(plain))
            with (
                plain.open("rb") as source,
                atomic_file(trace) as target,
                gzip.GzipFile(fileobj=target, mode="wb") as compressed,
            ):
                shutil.copyfileobj(source, compressed)
        steps = f"steps {self._first} to {last}, rank {self._rank}, {self._device.type}"
        rows = table(stopped.events() or [], self._num_profiled, on_gpu=self._is_gpu)
        text = f"profile of {steps}\n{rows}\ntrace: {trace}; open it at https://ui.perfetto.dev"
        write_text(self._folder / f"{name}.txt", f"{text}\n")
        return text

    def _log(self, text: str) -> None:
        if self._rank == 0:
            logger.info(text)

    @property
    def _is_gpu(self) -> bool:
        return self._device.type == "cuda"

    def _start(self) -> profile:
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._is_gpu
        if not self._is_gpu:
            os.environ.setdefault(
                "KINETO_LOG_LEVEL", "99"
            )  # its only error is that there is no GPU
        warm_up = schedule(wait=0, warmup=1, active=self._num_asked)
        started = profile(activities=activities, schedule=warm_up, acc_events=True)
        started.start()
        return started

    def _synchronize(self) -> None:
        if self._is_gpu:
            torch.cuda.synchronize(self._device)


def table(events: Iterable[Any], num_steps: int, *, on_gpu: bool) -> str:
    """Return the heaviest operations and the host gaps, as text.

    Only what happens within training steps counts: validation between them does not.

    Args:
        events: `FunctionEvent`s of torch's profiler; each step is one named `_SPAN`.
        num_steps: Number of whole steps; one that was interrupted does not count.
        on_gpu: Whether the device is a GPU; otherwise it is the host itself.
    """
    events = list(events)
    host = [event for event in events if event.device_type == DeviceType.CPU]
    spans = sorted(_interval(event) for event in host if event.name == _SPAN)[:num_steps]
    operators = [
        event
        for event in host
        if not event.is_user_annotation and event.name != _SPAN and _is_within(event, spans)
    ]
    kernels = [
        event
        for event in events
        if event.device_type == DeviceType.CUDA
        and not event.is_user_annotation
        and _is_within(event, spans)
    ]
    window = sum(end - begin for begin, end in spans)  # microseconds, as all times here
    busy = covered(map(_interval, kernels if on_gpu else operators), spans)
    times: defaultdict[str, float] = defaultdict(float)
    calls: defaultdict[str, int] = defaultdict(int)
    for event in operators:
        times[event.name] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
        calls[event.name] += 1
    if on_gpu:
        times[_OTHER] = sum(event.time_range.elapsed_us() for event in kernels) - sum(
            times.values()
        )
    idle = "the device ran nothing" if on_gpu else "no operator ran"
    whose = "on the device" if on_gpu else "on the CPU, without that of operators they call"
    if on_gpu and not kernels:
        return (
            "no kernel was recorded: the driver lets only root profile, or CUPTI is not installed"
        )
    lines = [
        f"{counted(num_steps, 'step')} of {window / num_steps / 1e3:.2f} ms",
        f"host gaps: {idle} in {1 - busy / window:.1%} of the time",
        f"heaviest operations, by time {whose}:",
        f"{'share':>8}{'ms a step':>12}{'calls a step':>14}  operation",
    ]
    lines += [
        f"{times[name] / window:>8.1%}{times[name] / num_steps / 1e3:>12.3f}"
        f"{calls[name] / num_steps:>14.1f}  {name}"
        for name in sorted(times, key=times.__getitem__, reverse=True)[:_NUM_ROWS]
    ]
    return "\n".join(lines)


def covered(intervals: Iterable[Interval], spans: Sequence[Interval]) -> float:
    """Return how much of sorted, disjoint spans is covered by intervals, which may overlap."""
    total, reached = 0.0, -math.inf  # all before `reached` is counted
    for begin, end in sorted(intervals):
        begin, reached = max(begin, reached), max(end, reached)
        first = max(bisect.bisect_right(spans, (begin, math.inf)) - 1, 0)
        for low, high in itertools.islice(spans, first, None):
            if low >= end:
                break
            total += max(min(end, high) - max(begin, low), 0.0)
    return total


def _interval(event: Any) -> Interval:
    return event.time_range.start, event.time_range.end


def _is_within(event: Any, spans: list[Interval]) -> bool:
    """Return whether an event begins within one of some sorted spans."""
    begin = event.time_range.start
    number = bisect.bisect_right(spans, (begin, math.inf)) - 1
    return number >= 0 and begin <= spans[number][1]
