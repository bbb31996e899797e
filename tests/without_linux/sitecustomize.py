"""Takes from every Python process that has this folder on its path what Linux alone offers.

What is left is what macOS has: no /proc, no /dev/shm, no prctl, no mallopt, none of Linux's calls
in `os`, and processes that are spawned, or as `START_METHOD` says, instead of forked.
"""

import builtins
import ctypes
import io
import multiprocessing
import multiprocessing.heap
import os
import sys

CALLS = (
    *("copy_file_range", "eventfd", "memfd_create", "pipe2", "posix_fadvise", "posix_fallocate"),
    *("sched_getaffinity", "sched_setaffinity", "splice", "fdatasync", "getrandom", "getxattr"),
    *("setxattr", "pidfd_open", "unshare", "waitid", "process_cpu_count"),
)
FOLDERS = ("/proc", "/dev/shm", "/sys")


def _hide(function):
    """Returns a function that finds nothing in Linux's folders; psutil has other sources."""

    def hidden(path, *arguments, **options):
        is_path = isinstance(path, (str, bytes, os.PathLike))
        if is_path and os.fsdecode(path).startswith(FOLDERS):
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if not caller.startswith("psutil"):
                raise FileNotFoundError(2, "No such file or directory", os.fsdecode(path))
        return function(path, *arguments, **options)

    return hidden


class _Library(ctypes.CDLL):
    """A C library that is not Linux's."""

    def __getattr__(self, name):
        if name in ("prctl", "mallopt"):
            raise AttributeError(name)
        return super().__getattr__(name)


for _name in CALLS:
    if hasattr(os, _name):
        delattr(os, _name)
for _name in ("stat", "open", "listdir", "scandir", "statvfs", "readlink"):
    setattr(os, _name, _hide(getattr(os, _name)))
builtins.open = io.open = _hide(builtins.open)
setattr(ctypes, "CDLL", _Library)  # noqa: B010  (a type, to mypy)
setattr(multiprocessing.heap.Arena, "_dir_candidates", [])  # noqa: B010  (of Linux alone)
multiprocessing.set_start_method(os.environ.get("START_METHOD", "spawn"))
