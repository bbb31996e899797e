"""The files that machines are set up with: they are what their readers take them for."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.commands import ROOT, Command, check

DEPLOY = ROOT / "deploy"
SERVICE = DEPLOY / "imagenet-rn50.service"
PROJECT = "/opt/imagenet_rn50"


def settings(path: Path) -> dict[str, str]:
    """Returns the KEY=value lines of a unit or an environment file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


def test_the_service_runs_a_command_that_accelerate_and_the_script_take(monkeypatch):
    monkeypatch.chdir(ROOT)
    line = settings(SERVICE)["ExecStart"]
    for key, value in settings(DEPLOY / "imagenet-rn50.env").items():
        line = line.replace(f"${{{key}}}", value).replace(f"${key}", value)
    program, *rest = shlex.split(line)
    assert program == f"{PROJECT}/.venv/bin/accelerate"
    assert "$" not in line
    check(Command(SERVICE, shlex.join(["accelerate", *rest]), None))


def test_the_service_starts_again_after_a_failure_and_gives_up_in_the_end():
    unit = settings(SERVICE)
    assert unit["Restart"] == "on-failure"
    assert int(unit["StartLimitBurst"]) * int(unit["RestartSec"]) < int(
        unit["StartLimitIntervalSec"]
    )
    assert unit["KillMode"] == "control-group"
    assert unit["WantedBy"] == "multi-user.target"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_understands_every_line_of_the_service(tmp_path):
    program = tmp_path / ".venv" / "bin" / "accelerate"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / SERVICE.name

    def complaints(text):
        copy.write_text(text.replace(PROJECT, str(tmp_path)), encoding="utf-8")
        done = subprocess.run(
            ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
        )
        return [line for line in done.stderr.splitlines() if SERVICE.name in line]

    text = SERVICE.read_text(encoding="utf-8")
    assert complaints(text) == []
    assert complaints(text.replace("KillMode", "KilMode")), "it says so when it does not"


def test_the_spot_job_runs_commands_that_our_programs_take(monkeypatch):
    monkeypatch.chdir(ROOT)
    job = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text(encoding="utf-8"))
    assert job["resources"]["use_spot"] is True
    launches = [line for line in job["run"].splitlines() if line.startswith("accelerate")]
    (line,) = launches
    for key, value in job["envs"].items():
        line = line.replace(f"${key}", value or "bucket")
    assert "$" not in line
    check(Command(DEPLOY / "skypilot.yaml", line, None))


def test_the_spot_job_installs_the_pinned_way_to_s3():
    job = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text(encoding="utf-8"))
    pinned = re.search(r"^s3fs==\S+$", (ROOT / "requirements-dev.txt").read_text(), re.M)
    assert pinned
    assert pinned[0] in job["setup"]
