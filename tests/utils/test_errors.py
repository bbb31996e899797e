import os
import subprocess
import sys
from typing import Any

import pytest

from imagenet_rn50.utils.errors import (
    EXIT_OUTPUT_CLOSED,
    EXIT_WRONG_INPUT,
    InputError,
    RankError,
    exit_on_input_error,
)


@pytest.mark.parametrize("kind", [InputError, RankError])
@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_the_first_rank_of_a_machine_speaks_and_others_of_what_they_may_meet_alone(
    kind, rank, monkeypatch, capsys
):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(SystemExit) as ended, exit_on_input_error():
        raise kind("no such thing")
    assert ended.value.code == EXIT_WRONG_INPUT
    is_silent = rank == "1" and kind is InputError
    assert capsys.readouterr().err == ("" if is_silent else "error: no such thing\n")


def run_unread(*command: str, **streams: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command that writes into a pipe which nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    given: dict[str, Any] = {
        name: writer if stream == "unread" else stream for name, stream in streams.items()
    }
    try:
        return subprocess.run(
            [sys.executable, *command],
            check=False,
            timeout=60,
            **given,
        )
    finally:
        os.close(writer)


@pytest.mark.parametrize("stderr", [subprocess.PIPE, subprocess.STDOUT], ids=["apart", "2>&1"])
@pytest.mark.parametrize(
    "body",
    [
        "print('a line, which stays in the buffer')",
        "print('x' * 1_000_000)",
        "print('help'); raise SystemExit(0)",
        "print('progress'); raise InputError('no such thing')",
    ],
    ids=["buffered", "long", "help", "error"],
)
def test_a_closed_pipe_ends_a_command_without_a_traceback(body, stderr):
    code = f"from imagenet_rn50.utils.errors import *\nwith exit_on_input_error(): {body}"
    ended = run_unread("-c", code, stdout="unread", stderr=stderr)
    assert ended.returncode == EXIT_OUTPUT_CLOSED
    assert b"Traceback" not in (ended.stderr or b"")
    assert b"BrokenPipe" not in (ended.stderr or b"")


def test_another_broken_pipe_is_not_taken_for_that_of_the_output():
    with pytest.raises(BrokenPipeError), exit_on_input_error():
        raise BrokenPipeError("the connection is lost")


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "imagenet_rn50", "estimate", "--recipe", "rn50-16ep", "--instance", "g6.12xlarge"),
        ("shard_imagenet.py", "pack", "--help"),
    ],
    ids=["imagenet_rn50", "shard_imagenet"],
)
def test_every_program_ends_quietly_when_nobody_reads_it(command):
    ended = run_unread(*command, stdout="unread", stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (EXIT_OUTPUT_CLOSED, b"")
