"""The one error that users are meant to see, and how entry points show it.

    ValueError
    └── InputError      what the user gave cannot be used: exit code 2, no traceback
        └── RankError   the same, where one rank of several may be the only one to meet it

Everything else that is raised is a bug or a broken machine, and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_WRONG_INPUT = 2
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ABOUT_A_PATH = _FULL | {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}


class InputError(ValueError):
    """What the user gave cannot be used.

    Args:
        problem: One sentence: what is wrong, naming the file, key or value.
        expected: What would have been right.
        found: What was there instead.
        fix: What to do about it, as a command where there is one.
    """

    def __init__(
        self,
        problem: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        fix: str | None = None,
    ) -> None:
        details = (("expected", expected), ("found", found), ("fix", fix))
        lines = [problem] + [f"  {word + ':':<9} {text}" for word, text in details if text]
        super().__init__("\n".join(lines))


class RankError(InputError):
    """What one rank may meet alone, in what it reads: a damaged sample say, which others never see.

    It is a class and no mark on an error, so that it comes through a loader's worker, which makes
    errors anew from their type and text.
    """


def require_least(name: str, value: float, least: float) -> None:
    """Refuses a number that is too small.

    Args:
        name: What it was given as, such as `--rows`.
        value: The number.
        least: The smallest that makes sense.

    Raises:
        InputError: When it is smaller.
    """
    if not value >= least:
        raise InputError(f"{name} {value:g} makes no sense", expected=f"{least:g} or more")


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turns an `InputError` into its message on stderr and exit code 2.

    So it does with an `OSError` about a path that users can mend: a full disk, say.

    Under a launcher every rank fails alike, so only the first of a machine speaks; of a `RankError`
    each one that meets it.

    Raises:
        SystemExit: With code 2, when the body raised `InputError`.
        OSError: When it raised any other.
    """
    try:
        try:
            yield
        except OSError as error:
            if error.errno not in _ABOUT_A_PATH:
                raise
            fix = "free some space, or name another place" if error.errno in _FULL else None
            where = error.filename or "the output"
            raise InputError(f"{where}: {error.strerror}", fix=fix) from None
    except InputError as error:
        if isinstance(error, RankError) or int(os.environ.get("LOCAL_RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_WRONG_INPUT) from None
