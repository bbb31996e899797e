"""python -m imagenet_rn50 VERB: what there is besides sharding and training."""

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
    preview,
    prove_resume,
    push,
    schedule,
)
from imagenet_rn50.utils.errors import exit_on_input_error

_SCRIPT = "imagenet-rn50"  # as pyproject.toml installs it; shells complete the verbs of a name only

_DESCRIPTION = """shard_imagenet.py packs, train_accelerate.py trains; this does what comes before,
between and after, in this order."""

app = tyro.extras.SubcommandApp()
# In the order of the journey.
app.command(demo)
app.command(doctor)
app.command(estimate)
app.command(preview)
app.command(schedule)
app.command(name="prove-resume")(prove_resume)
app.command(export)
app.command(evaluate)
app.command(push)


def main() -> None:
    """Runs the verb that the command line names."""
    installed = Path(sys.argv[0]).name == _SCRIPT
    prog = _SCRIPT if installed else "python -m imagenet_rn50"
    with exit_on_input_error():
        app.cli(prog=prog, description=_DESCRIPTION)


if __name__ == "__main__":
    main()
