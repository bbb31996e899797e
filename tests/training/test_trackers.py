import errno
import importlib.util
import sys
from typing import ClassVar

import pytest
from accelerate import tracking
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType

import train_accelerate
from imagenet_rn50.recipe import Recipe
from imagenet_rn50.runs.metrics import START, read_metrics
from imagenet_rn50.training.accelerator import make_accelerator
from imagenet_rn50.training.trackers import (
    end_training,
    init_trackers,
    log_to_trackers,
    require_hub_token,
)
from imagenet_rn50.utils.errors import InputError
from tests.support import write_tiny


class ServerError(Exception):
    """No OSError, as none of wandb's errors is."""


class Tracker(GeneralTracker):
    """Remembers what it was told, and fails where it is told to."""

    requires_logging_directory = False

    def __init__(self, name, fails_at=None, error=None):
        super().__init__(_blank=True)
        self.name, self.fails_at, self.error, self.told = name, fails_at, error, []

    tracker = None

    def __str__(self):
        return self.name

    def _hear(self, call):
        self.told.append(call)
        if call == self.fails_at:
            raise self.error

    def start(self):
        self._hear("start")

    def store_init_configuration(self, values):
        pass

    def log(self, values, step, **more):
        self._hear("log")

    def finish(self):
        self._hear("finish")


@pytest.mark.parametrize("fails_at", ["start", "log", "finish"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ServerError("timed out")]
)
def test_a_tracker_that_fails_is_named_once_and_left_and_the_others_go_on(
    fails_at, error, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    accelerator = make_accelerator()
    failing, sound = Tracker("wandb", fails_at, error), Tracker("tensorboard")
    accelerator.log_with = [failing, sound]
    init_trackers(accelerator, Recipe(), tmp_path)
    log_to_trackers(accelerator, {"loss": 1.0}, 8)
    log_to_trackers(accelerator, {"loss": 1.0}, 16)
    end_training(accelerator)
    assert sound.told == ["start", "log", "log", "finish"]
    assert failing.told == sound.told[: sound.told.index(fails_at) + 1]
    said = capsys.readouterr().out
    assert said.count("wandb") == 1
    assert f"{type(error).__name__}: {error}" in said


class Trackio(Tracker):
    """Stands for Trackio's: remembers how it was started."""

    options: ClassVar[dict[str, object]] = {}
    failing_at: ClassVar[str | None] = None

    def __init__(self, run_name, **options):
        super().__init__("trackio", self.failing_at, ServerError("no Hub"))
        type(self).options = options


@pytest.mark.parametrize("fails_at", [None, "start"])
def test_trackio_resumes_the_run_and_syncs_to_a_space_which_the_run_records(
    tmp_path, monkeypatch, fails_at
):
    write_tiny(tmp_path)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "trackio", Trackio)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TRACKIO])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # it is not installed here
    monkeypatch.setattr(Trackio, "failing_at", fails_at)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    words = ["train_accelerate.py", "--recipe", str(tmp_path / "tiny.yaml"), "--workers", "0"]
    words += ["--shards", str(tmp_path / "shards"), "--run", str(tmp_path / "a-run")]
    words += ["--trackers", "trackio", "--trackio-space", "user/runs", "--stop-at-step", "1"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        train_accelerate.main()
    options = {"name": "a-run", "resume": "allow", "space_id": "user/runs"}
    assert Trackio.options == options
    [start] = read_metrics(tmp_path / "a-run", START)
    assert start.get("trackio_space") == (None if fails_at else "user/runs")


def test_a_space_without_trackio_or_a_token_is_an_error(monkeypatch):
    words = ["--recipe", "digits", "--shards", "S", "--run", "R", "--trackio-space"]
    with pytest.raises(InputError, match="needs the tracker trackio"):
        train_accelerate.parse([*words, "user/runs"])
    trackers = ["--trackers", "tensorboard", "trackio"]
    assert train_accelerate.parse([*words, "user/runs", *trackers]).trackio_space == "user/runs"
    for wrong in ("runs", "user/", "https://huggingface.co/spaces/user/runs", "a b/c"):
        with pytest.raises(InputError, match="is not a Hub id"):
            train_accelerate.parse([*words, wrong, *trackers])
    monkeypatch.setattr("imagenet_rn50.training.trackers.get_token", lambda: None)
    with pytest.raises(InputError, match="HF_TOKEN"):
        require_hub_token()
