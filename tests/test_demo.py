"""The demo as a user runs it, and as a user runs it again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_demo(folder):
    return subprocess.run(
        [sys.executable, "-m", "imagenet_rn50", "demo"]
        + ["--folder", str(folder / "run"), "--data", str(folder / "data")],
        cwd=ROOT,
        env=os.environ | {"https_proxy": "http://127.0.0.1:9"},  # nothing answers there
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.multiprocess
@pytest.mark.timeout(900)  # two whole demos; a machine may be busy
def test_the_demo_learns_the_digits_and_a_second_run_changes_no_result(tmp_path):
    first = run_demo(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["num_images"] == 360
    assert summary["top1"] >= 0.975
    assert summary["top5"] >= summary["top1"]
    assert "img/s" in first.stderr
    assert len(list((tmp_path / "run" / "exported" / "examples").glob("*.jpg"))) == 5
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()

    second = run_demo(tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "Nothing to train" in second.stdout
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics
    again = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
