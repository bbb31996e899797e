"""What make hands on to the programs that it calls."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make(*words):
    """Run make as from a shell: the make that runs these tests must not pass its options on."""
    environment = {name: os.environ[name] for name in os.environ if "MAKE" not in name}
    environment.pop("MFLAGS", None)
    return subprocess.run(
        ["make", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def venv(tmp_path):
    """A virtual environment whose Python prints what the Space would show."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$1: $MODEL_ID"\n')
    python.chmod(0o755)
    for name in (".installed", ".installed-dev"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    "model", ["owner/name", "my exports/digits 2", "it's; true", 'a "b"', "$(HOME) `id`"]
)
def test_a_model_of_any_name_reaches_the_space(venv, model):
    word = model.replace("$", "$$")  # as make wants it
    done = make("-s", "app", f"VENV={venv}", f"MODEL_ID={word}")
    assert (done.returncode, done.stdout) == (0, f"app/app.py: {model}\n"), done.stderr


def test_a_model_and_shards_of_any_name_reach_the_page(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$*"\n')
    python.chmod(0o755)
    (tmp_path / ".installed").touch()
    (tmp_path / ".installed-dev").touch()
    words = (f"VENV={tmp_path}", "MODEL_ID=my exports/a", "SHARDS=it's here")
    done = make("-s", "web-app", *words)
    options = "--model my exports/a --shards it's here"
    assert (done.returncode, done.stdout) == (0, f"-m imagenet_rn50 web {options}\n"), done.stderr


@pytest.mark.parametrize("failing", [None, "ruff", "mypy", "lint-imports", "python"])
def test_make_test_fails_where_a_check_or_the_tests_fail(tmp_path, failing):
    (tmp_path / "bin").mkdir()
    for name in ("python", "ruff", "mypy", "lint-imports"):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\necho "ran {name} $*"\nexit {int(name == failing)}\n')
        program.chmod(0o755)
    for name in (".installed", ".installed-dev"):
        (tmp_path / name).touch()
    done = make("test", f"VENV={tmp_path}")
    assert (done.returncode == 0) == (failing is None), done.stdout + done.stderr
    if failing is None:
        for program in ("ruff format", "ruff check", "mypy", "lint-imports", "python -m pytest"):
            assert f"ran {program}" in done.stdout
