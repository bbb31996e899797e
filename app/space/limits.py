"""What one visitor, or many, may ask of the machine."""

from typing import Any

MAX_FILE_SIZE = "20mb"
MAX_BATCH = 64  # files
MAX_WAITING = 32  # requests; whoever comes after them is asked to try again
NUM_WORKERS = 2  # requests answered at a time
KEPT_SECONDS = 3600  # uploaded files, looked at as often

# All events share one line, so that the limit is one of the whole page.
QUEUE: dict[str, Any] = {"concurrency_limit": NUM_WORKERS, "concurrency_id": "model"}
