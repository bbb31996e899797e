"""Restart markers and upright images without loss, by libjpeg-turbo's `jpegtran`.

One process a picture: no package on PyPI does this transform within the process (TurboJPEG's
transform has no restart parameter, so its bindings have none either).
"""

from __future__ import annotations

import shutil
import subprocess

from imagenet_rn50.errors import InputError

PROGRAM = "jpegtran"
_SECONDS = 60  # a picture takes some milliseconds
# By EXIF orientation; each undoes how the picture was stored.
_TURNS = {
    2: ("-flip", "horizontal"),
    3: ("-rotate", "180"),
    4: ("-flip", "vertical"),
    5: ("-transpose",),
    6: ("-rotate", "90"),
    7: ("-transverse",),
    8: ("-rotate", "270"),
}


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
    return _run(jpeg, "-restart", f"{blocks}B")


def turn_upright(jpeg: bytes, orientation: int) -> bytes:
    """Rearranges the coefficients so that an image is stored upright; its metadata stays as it is.

    Args:
        jpeg: An undamaged JPEG.
        orientation: Its EXIF orientation, 2 to 8.

    Raises:
        JpegtranError: When `jpegtran` is missing or complains, as it does where blocks that are cut
            by an edge would have to move to another one.
    """
    if not is_installed():
        raise JpegtranError(f"{PROGRAM} is not installed")
    return _run(jpeg, "-perfect", *_TURNS[orientation])


def _run(jpeg: bytes, *options: str) -> bytes:
    done = subprocess.run(
        [PROGRAM, "-copy", "all", *options],
        input=jpeg,
        capture_output=True,
        check=False,
        timeout=_SECONDS,
    )
    if done.returncode != 0:
        message = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise JpegtranError(message[-1] if message else f"jpegtran exit code {done.returncode}")
    return done.stdout
