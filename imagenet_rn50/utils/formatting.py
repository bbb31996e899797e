"""Format numbers and lists in messages, tables and reports; numbers without misleading rounding."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

_MAX_DIGITS = 8


def percent(part: float, digits: int = 2) -> str:
    """Return a fraction as percent, for example `99.997%`.

    It has `digits` decimals, or more if those would round to 0% or 100% what is neither.

    Args:
        part: The fraction, in [0, 1].
        digits: Minimum number of decimals.
    """
    return format(part, percent_spec(part, digits))


def percent_spec(part: float, digits: int = 2) -> str:
    """Return the format of `percent`, as in an f-string."""
    while digits < _MAX_DIGITS and round(part, digits + 2) in {0, 1} and part not in {0, 1}:
        digits += 1
    return f".{digits}%"


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, for example `1 image` or `1,797 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shortened(names: Sequence[object], most: int = 5) -> str:
    """Return the first `most` of some names, for example `cat, dog ...` where there are more."""
    return ", ".join(map(str, names[:most])) + " ..." * (len(names) > most)


def rate_text(per_second: float) -> str:
    """Return a rate with its meaningful digits, for example `1,205` or `3.1`."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def quoted(value: object) -> str:
    """Return a value, such as a path, as one word of a command line."""
    return shlex.quote(str(value))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines with columns of equal width, for the terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def first_name(label: str) -> str:
    """Return the first of the names that a label lists: `tench` of "tench, Tinca tinca"."""
    return label.partition(",")[0]
