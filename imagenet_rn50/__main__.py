"""python -m imagenet_rn50 COMMAND: everything besides packing and training."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from imagenet_rn50.cli import (
    demo,
    doctor,
    estimate,
    evaluate,
    export,
    predict,
    preview,
    prove_resume,
    push,
    recipes,
    schedule,
    web,
)
from imagenet_rn50.utils.errors import exit_on_input_error
from imagenet_rn50.utils.version import print_version_and_exit

_SCRIPT = "imagenet-rn50"  # as pyproject.toml installs it; shell completion needs a name

_DESCRIPTION = """Commands in the order of the workflow. shard_imagenet.py packs, and
train_accelerate.py trains: before that run recipes to prove-resume, after it evaluate to push.
--version prints the version."""

app = tyro.extras.SubcommandApp()
app.command(demo)
app.command(recipes)
app.command(doctor)
app.command(estimate)
app.command(preview)
app.command(schedule)
app.command(name="prove-resume")(prove_resume)
app.command(evaluate)
app.command(predict)
app.command(export)
app.command(web)
app.command(push)


def main() -> None:
    """Run the command that the command line names."""
    print_version_and_exit(sys.argv[1:])
    installed = Path(sys.argv[0]).name == _SCRIPT
    prog = _SCRIPT if installed else "python -m imagenet_rn50"
    with exit_on_input_error():
        app.cli(prog=prog, description=_DESCRIPTION)


if __name__ == "__main__":
    main()
