"""Restart markers without loss, by libjpeg-turbo's `jpegtran`.

One process a picture: no package on PyPI does this transform within the process (TurboJPEG's
transform has no restart parameter, so its bindings have none either).
"""

from __future__ import annotations

import shutil
import subprocess

from imagenet_rn50.errors import InputError

PROGRAM = "jpegtran"
_SECONDS = 60  # a picture takes some milliseconds


class JpegtranError(ValueError):
    """`jpegtran` did not accept the picture; the message is its own."""


def is_installed() -> bool:
    """Says whether `jpegtran` can be called."""
    return shutil.which(PROGRAM) is not None


def require_installed() -> None:
    """Stops when restart markers are asked for and cannot be made.

    Raises:
        InputError: When `jpegtran` is missing.
    """
    if not is_installed():
        raise InputError(
            "restart markers need the program jpegtran",
            expected="jpegtran on the PATH",
            fix="apt-get install libjpeg-turbo-progs, or pack without: --restart-blocks none",
        )


def add_restart_markers(jpeg: bytes, blocks: int) -> bytes:
    """Writes the entropy-coded data anew, with a restart marker after every `blocks` MCUs.

    A progressive picture becomes a baseline one. The coefficients, hence the pixels, stay the same,
    and so do all markers.

    Args:
        jpeg: An undamaged JPEG.
        blocks: MCUs from one restart marker to the next.

    Raises:
        JpegtranError: When `jpegtran` complains, even if it goes on: then nothing is proven.
    """
    done = subprocess.run(
        [PROGRAM, "-copy", "all", "-restart", f"{blocks}B"],
        input=jpeg,
        capture_output=True,
        check=False,
        timeout=_SECONDS,
    )
    if done.returncode != 0:
        message = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise JpegtranError(message[-1] if message else f"jpegtran exit code {done.returncode}")
    return done.stdout
