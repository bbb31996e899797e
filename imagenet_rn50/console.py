"""What a person sees while something runs: one kind of progress bar for every long loop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

# A terminal is redrawn ten times a second; a log file gets a line every ten seconds.
_ON_TERMINAL = sys.stderr.isatty()
_REDRAW_SECONDS = 0.1 if _ON_TERMINAL else 10.0


def progress_bar(
    *, total: int, description: str, unit: str = "img", initial: int = 0, enabled: bool = True
) -> tqdm[Any]:
    """Makes a bar that shows the rate and the remaining time.

    Args:
        total: How many units there are in all.
        description: What is going on, in a word or two.
        unit: What is counted; the rate is shown as `unit`/s.
        initial: How many units were done before this process began.
        enabled: False on the ranks that stay silent.

    Returns:
        A bar; call `update(n)` on it and use it as a context manager.
    """
    return _Bar(
        total=total,
        initial=initial,
        desc=f"{description:<10}",
        unit=unit,
        unit_scale=False,
        mininterval=_REDRAW_SECONDS,
        dynamic_ncols=True,
        disable=not enabled,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
        "[{elapsed}<{remaining}, {rate_fmt}{postfix}]",
    )


def say(text: str) -> None:
    """Prints a line without tearing a progress bar that is on the screen."""
    if _ON_TERMINAL:
        tqdm.write(text, file=sys.stdout)
    else:
        print(text)
    sys.stdout.flush()


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar that is redrawn in place on a terminal, and written line by line into a log."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        if _ON_TERMINAL:
            return tqdm.status_printer(file)

        def print_line(status: str) -> None:
            if status.strip():
                print(status, file=file, flush=True)

        return print_line
