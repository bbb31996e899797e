"""Extract the commands in the documentation and check them with the real parsers.

Nothing is executed: only the parsers of this project, accelerate and torchrun run.
"""

import functools
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import tyro
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from torch.distributed.run import get_args_parser

import shard_imagenet
import train_accelerate
from deploy.hf_jobs import JobOptions
from imagenet_rn50.__main__ import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

_BLOCK = re.compile(r"(?:<!-- needs ([^>]+) -->\n)?^```(\w*)\n(.*?)^```", re.M | re.S)
_INLINE = re.compile(r"`(python [^`\n]+)`")
_OURS = ("python ", "make ", "accelerate ", "torchrun ", "imagenet-rn50 ")
_HARMLESS = {"mkdir", "pip", ".", "cd"}
_JOB = "deploy/slurm.sbatch"
_SBATCH_OPTIONS = {"--nodes", "--gpus-per-node", "--cpus-per-task", "--time"}
_PLACEHOLDER = re.compile(r"(?:MY_)?[A-Z_]+")


@dataclass(frozen=True)
class Command:
    """A command shown in a document.

    Attributes:
        document: The file it appears in.
        text: The command on one line.
        needs: What it requires (a GPU, data, ...); None if it runs anywhere.
    """

    document: Path
    text: str
    needs: str | None

    def __str__(self) -> str:
        return f"{self.document.name}: {self.text}"

    @property
    def words(self) -> list[str]:
        """The arguments, without environment variables and output redirection."""
        words = shlex.split(self.text)
        while re.fullmatch(r"\w+=.*", words[0], re.S):
            words = words[1:]
            if not words:
                return []
        return words[: words.index(">")] if ">" in words else words


def commands_in(document: Path) -> list[Command]:
    """Return all commands of a document: code blocks first, then inline code."""
    text, found = document.read_text(encoding="utf-8"), []
    for needs, language, body in _BLOCK.findall(text):
        lines = body.replace("\\\n", " ").splitlines()
        if language == "bash" or (not language and any(line.startswith(_OURS) for line in lines)):
            for line in lines:
                parts = re.split(r" && ", re.sub(r"\s+#.*$", "", line).strip())
                found += [Command(document, part, needs or None) for part in parts if part]
    without_blocks = _BLOCK.sub("", text)
    return found + [
        Command(document, inline, "more words")
        for inline in _INLINE.findall(without_blocks)
        if " --" in inline and "..." not in inline
    ]


def check(command: Command) -> None:
    """Parse a command with the parser of its program.

    Raises:
        AssertionError: If the program is unknown and the command is not marked with what it needs.
        SystemExit: If the parser rejects it.
    """
    words = command.words
    if not words or "--help" in words:
        return
    match words:
        case ["python", "-m", module, *rest]:
            _parse_module(module, rest)
        case ["imagenet-rn50", *rest]:
            _parse_subcommand(rest)
        case ["python", "shard_imagenet.py", *rest]:
            _parse_sharding(rest)
        case ["python", "train_accelerate.py", *rest]:
            train_accelerate.parse(_with_real_recipe(rest))
        case ["python", script, *rest]:
            source = (ROOT / script).read_text(encoding="utf-8")
            assert all(f'"{word}"' in source for word in rest if word.startswith("--"))
        case ["accelerate", "launch", *_] | ["torchrun", *_] | ["...", *_]:
            _parse_launched(words)
        case ["sbatch", *rest] if _JOB in rest:
            _parse_job(rest)
        case ["make", *targets]:
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            names = [target for target in targets if "=" not in target]
            assert all(re.search(rf"^{name}:", makefile, re.M) for name in names)
        case _:
            assert command.needs or words[0] in _HARMLESS, (
                "unknown program: mark what the command needs"
            )


def _parse_module(name: str, words: list[str]) -> None:
    """Parse the arguments of a module that is run with `python -m`."""
    if name == "imagenet_rn50":
        _parse_subcommand(words)
    elif name == "deploy.hf_jobs":
        tyro.cli(JobOptions, args=words)
    else:
        assert name.startswith("benchmarks."), f"unknown module {name}"
        assert (ROOT / f"{name.replace('.', '/')}.py").is_file()


def _parse_launched(words: list[str]) -> None:
    """Parse a launcher's command, or options added to a previous one ("...")."""
    match words:
        case ["accelerate", "launch", *rest]:
            _parse_launch(rest)
        case ["...", *rest]:
            ours = rest[len(rest) - rest[::-1].index("...") :] if "..." in rest else rest
            train_accelerate.parse(
                ["--recipe", "digits", "--shards", "SHARDS", "--run", "RUN", *ours]
            )
        case ["torchrun", *rest]:
            parsed = get_args_parser().parse_args(rest)
            if parsed.module:
                assert parsed.training_script == "imagenet_rn50"
                _parse_subcommand(parsed.training_script_args)
            else:
                assert parsed.training_script == "train_accelerate.py"
                train_accelerate.parse(parsed.training_script_args)


def _parse_job(words: list[str]) -> None:
    """Parse the arguments of sbatch, each with its value, and those of the script."""
    middle = words.index(_JOB)
    assert (ROOT / _JOB).is_file()
    assert set(words[:middle:2]) <= _SBATCH_OPTIONS
    train_accelerate.parse(_with_real_recipe(words[middle + 1 :]))


def _parse_launch(words: list[str]) -> None:
    """Parse the arguments of the launcher and those of the script."""
    parsed = launch_command_parser().parse_args(words)
    assert parsed.training_script == "train_accelerate.py"
    train_accelerate.parse(_with_real_recipe(parsed.training_script_args))
    if not _PLACEHOLDER.fullmatch(parsed.config_file):
        with mock.patch.dict(os.environ):
            parsed.config_file = str(ROOT / parsed.config_file)
            _validate_launch_command(parsed)


def _parse_subcommand(words: list[str]) -> None:
    """Parse a subcommand of `python -m imagenet_rn50` without running it."""
    if not words or words[0].startswith("--"):
        return  # options of tyro itself
    _parse_only({name: spec.target for name, spec in app._subcommands.items()}, words)


def _parse_sharding(words: list[str]) -> None:
    """Parse a subcommand of `shard_imagenet.py` without running it."""
    names = ("pack", "verify", "index", "subset", "audit", "sample")
    _parse_only({name: getattr(shard_imagenet, name) for name in names}, words)


def _parse_only(functions, words: list[str]) -> None:
    """Parse the arguments of one of several functions without calling it."""

    def idle(function):
        @functools.wraps(function)
        def nothing(*positional, **named):
            return 0

        nothing.__annotations__ = function.__annotations__ | {"return": int}
        return nothing

    subcommands = {name: idle(function) for name, function in functions.items()}
    tyro.extras.subcommand_cli_from_dict(subcommands, args=words)


def _with_real_recipe(words: list[str]) -> list[str]:
    """Return the arguments with the reader's own recipes replaced by `digits`."""
    return ["digits" if word.endswith((".yaml", ".yml")) else word for word in words]
