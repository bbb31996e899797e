"""Output of a program whose reader is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """\
import sys
from imagenet_rn50.utils.logging import ignore_output_errors, progress_bar, logger
with ignore_output_errors():
    for number in range(3):
        logger.info(f"line {number} \\u2192 " + "x" * 9000)
        print("error", file=sys.stderr)
    with progress_bar(total=2, description="train") as bar:
        bar.update(2)
raise SystemExit(75)
"""


def run(redirection, program=PROGRAM, **more):
    """Runs a program with a shell's redirection; returns its exit code and stdout."""
    words = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-c", program]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60, **more)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "redirection", [">/dev/full 2>&1", ">&-", "2>&-", ">&- 2>&- <&-", "2>/dev/full"]
)
def test_output_that_cannot_be_written_changes_no_exit_code(redirection):
    assert run(redirection)[0] == 75


def test_a_pipe_without_reader_changes_no_exit_code():
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, cwd=ROOT, stdout=writing, stderr=writing, timeout=60)
    os.close(writing)
    assert done.returncode == 75


def test_a_reader_that_stops_reading_holds_nothing_up_and_is_told_what_it_missed():
    program = """\
import sys
from imagenet_rn50.utils.logging import ignore_output_errors, logger
with ignore_output_errors():
    for number in range(40):
        logger.info("x" * 9999)
    print("written", file=sys.stderr)
    sys.stdin.readline()
    logger.info("again")
"""
    words, pipe = [sys.executable, "-c", program], subprocess.PIPE
    process = subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stderr.readline() == "written\n"
    read = os.read(process.stdout.fileno(), 100_000)
    said, _ = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    before, _, notice = (read.decode() + said).rpartition("\n[")
    lost = int(notice.removesuffix(" bytes of output could not be written]\nagain\n"))
    assert lost > 0
    assert len(before) + lost == 40 * 10_000


def test_what_is_written_arrives_as_it_is():
    code, said = run("2>/dev/null")
    assert code == 75
    assert said == "".join(f"line {number} \u2192 " + "x" * 9000 + "\n" for number in range(3))


def test_every_command_starts_with_stderr_closed():
    assert run("2>&-", "import imagenet_rn50.utils.logging")[0] == 0
