"""Limits on uploads, requests and memory."""

from __future__ import annotations

import ctypes
from typing import Any

MAX_FILE_SIZE = "20mb"
MAX_BATCH = 64  # files
MAX_WAITING = 64  # requests in the queue; later ones are told that it is full
NUM_WORKERS = 2  # concurrent requests
POLL_SECONDS = 0.01  # between looks at the queue; Gradio's 1 ms keeps an idle core 8% busy
UPLOAD_SECONDS = 3600  # age at which uploads are deleted, and the interval of the check

# All events share one queue, so the limit holds for the whole page.
QUEUE: dict[str, Any] = {"concurrency_limit": NUM_WORKERS, "concurrency_id": "model"}

_M_MMAP_THRESHOLD = -3  # from glibc's malloc.h
_LARGE_BLOCK = 2**20  # bytes


def limit_malloc_caching() -> None:
    """Make glibc return large blocks to the system as soon as they are freed.

    By default it raises its threshold and caches image buffers in each of forty threads: three
    rounds of 50 clients with 12-megapixel images left 1.6 GB in use, and 1.0 GB with this.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return  # not glibc
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
