"""What a run costs: the price of the machines times the time of all processes that trained it."""

from __future__ import annotations

import time

from imagenet_rn50.runs.folder import RunFolder
from imagenet_rn50.runs.metrics import FILE_NAME, read_metrics
from imagenet_rn50.training.progress import Progress


class Cost:
    """Counts the money of a run, over all of its processes.

    Args:
        run: The run folder, before its journal is opened: work that is lost was paid for, too.
        price_per_hour: Of the machines, USD; None when nobody knows.
        progress: Where this process begins.
    """

    def __init__(self, run: RunFolder, price_per_hour: float | None, progress: Progress) -> None:
        lines = read_metrics(run.path) if (run.path / FILE_NAME).is_file() else []
        self._spent_before = max((line.get("cost_usd", 0.0) for line in lines), default=0.0)
        self._price_per_second = None if price_per_hour is None else price_per_hour / 3600
        self._first, self._total = progress.samples_seen, progress.total_samples
        self._began = time.monotonic()

    def figures(self, samples_seen: int) -> dict[str, float]:
        """Returns what is written down beside other figures.

        Args:
            samples_seen: Where the run stands.

        Returns:
            `cost_usd`, spent so far in the whole run; `cost_left_usd`, what the rest takes at the
            speed of this process, evaluation and saving included, once it has trained. Nothing
            where the price is not known.
        """
        if self._price_per_second is None:
            return {}
        spent = (time.monotonic() - self._began) * self._price_per_second
        figures = {"cost_usd": self._spent_before + spent}
        if trained := samples_seen - self._first:
            figures["cost_left_usd"] = spent / trained * (self._total - samples_seen)
        return figures
