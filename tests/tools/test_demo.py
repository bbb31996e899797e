"""The demo as a user runs it, and as a user runs it again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_demo(folder):
    return subprocess.run(
        [sys.executable, "-m", "imagenet_rn50", "demo"]
        + ["--folder", str(folder / "a run"), "--data", str(folder / "its data")],
        cwd=ROOT,
        env=os.environ | {"https_proxy": "http://127.0.0.1:9"},  # nothing answers there
        capture_output=True,
        text=True,
        check=False,
    )


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow  # CI runs `make demo`
@pytest.mark.multiprocess
@pytest.mark.timeout(900)  # a machine may be busy
def test_the_demo_learns_the_digits_and_a_second_run_finds_nothing_to_do(tmp_path):
    first = run_demo(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    summary = json.loads((tmp_path / "a run" / "summary.json").read_text())
    assert summary["num_images"] == 360
    assert summary["top1"] >= 0.975
    assert summary["top5"] >= summary["top1"]
    assert "img/s" in first.stderr
    assert len(list((tmp_path / "a run" / "exported" / "examples").glob("*.jpg"))) == 6
    card = (tmp_path / "a run" / "exported" / "README.md").read_text(encoding="utf-8")
    assert "<!--metrics.json results.1.top1-->" in card.split("\n## ")[0]  # it opens with it

    before = files_of(tmp_path)
    second = run_demo(tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "Nothing to do" in second.stdout
    assert f"top-1 {summary['top1']:.2%}" in second.stdout
    assert files_of(tmp_path) == before


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_a_demo_that_lost_its_model_makes_it_again_and_changes_no_other_result(tmp_path):
    assert run_demo(tmp_path).returncode == 0
    run = tmp_path / "a run"
    summary, metrics = (run / "summary.json").read_text(), (run / "metrics.jsonl").read_bytes()
    weights = (run / "exported" / "model.safetensors").read_bytes()
    shutil.rmtree(run / "exported")

    again = run_demo(tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Nothing to train" in again.stdout
    assert (run / "metrics.jsonl").read_bytes() == metrics
    assert (run / "exported" / "model.safetensors").read_bytes() == weights
    measured = json.loads((run / "summary.json").read_text())
    assert {**measured, "seconds": 0} == {**json.loads(summary), "seconds": 0}
