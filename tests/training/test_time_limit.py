"""Time limits of seconds, by the real clock, in real processes."""

import time

import pytest

from imagenet_rn50.runs.metrics import read_metrics
from tests.training.trainers import EXIT_INTERRUPTED, assert_same_run, steps_saved

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess, pytest.mark.timeout(900)]

LIMIT_S = 38.0  # thirty of them are kept for the end
LONG = ("--epochs", "60", "--workers", "1")


def train_in_sessions(tiny, run, start):
    """Runs the same command until the run is finished; returns how often."""
    for session in range(1, 100):
        began = time.time()
        ranks = start(tiny, run, *LONG, "--max-hours", str(LIMIT_S / 3600))
        codes = {rank.wait() for rank in ranks}
        seconds = time.time() - began
        print(f"session {session}: exit code {codes}, {seconds:.1f} s, {steps_saved(run)[-1]} seen")
        assert seconds < LIMIT_S, ranks[0].said()
        if codes == {0}:
            return session
        assert codes == {EXIT_INTERRUPTED}, ranks[0].said()
        assert read_metrics(run, "stop")[-1]["samples_seen"] == steps_saved(run)[-1]
        assert "--max-hours" in read_metrics(run, "stop")[-1]["reason"]
    raise AssertionError("the run does not finish")


def test_a_run_in_sessions_of_seconds_never_overruns_and_ends_with_the_same_bits(
    tiny, trainers, tmp_path
):
    run = tmp_path / "run"
    num_sessions = train_in_sessions(tiny, run, lambda *words: [trainers.start(*words)])
    assert num_sessions > 1
    trainers.train(tiny, tmp_path / "undisturbed", *LONG)
    assert_same_run(run, tmp_path / "undisturbed")


def test_two_ranks_in_sessions_of_seconds_stop_together_and_end_with_the_same_bits(
    tiny, trainers, tmp_path
):
    run = tmp_path / "run"
    assert train_in_sessions(tiny, run, trainers.start_two_ranks) > 1
    trainers.train_on_two_ranks(tiny, tmp_path / "undisturbed", *LONG)
    assert_same_run(run, tmp_path / "undisturbed")
