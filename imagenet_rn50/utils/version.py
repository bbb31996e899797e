"""`--version` of every entry point."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import imagenet_rn50


def print_version_and_exit(arguments: Sequence[str]) -> None:
    """Print the version if `--version` is the first argument.

    tyro has no such option, and would ask for the required ones first.

    Raises:
        SystemExit: With code 0, if it was.
    """
    if arguments and arguments[0] == "--version":
        print(f"imagenet_rn50 {imagenet_rn50.__version__}, Python {platform.python_version()}")
        raise SystemExit(0)
