"""The plots of an evaluation report, each as PNG for a light and for a dark page."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context, style
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from imagenet_rn50.evaluation.statistics import Calibration
from imagenet_rn50.figures import new_figure, png_of

_LIGHT, _DARK = "default", "dark_background"
_BARS, _GAPS = "#2f7ebc", "#e07b39"  # told apart without colour vision, and readable on both pages
_DARK_PAGE = "#16191d"


class Plot(NamedTuple):
    """One plot, twice: PNGs for light and dark pages."""

    light: bytes
    dark: bytes


def reliability_plot(calibration: Calibration) -> Plot:
    """Draws accuracy over confidence, bin by bin, and how many images are in each bin."""

    def draw(figure: Figure) -> None:
        num_bins = len(calibration.num_images)
        left = np.arange(num_bins) / num_bins
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        filled = calibration.num_images > 0
        bars = {"align": "edge", "width": 1 / num_bins}
        above.bar(left[filled], calibration.accuracy[filled], color=_BARS, label="accuracy", **bars)
        above.plot(
            calibration.confidence[filled],
            calibration.accuracy[filled],
            "o",
            color=_GAPS,
            markersize=5,
            label="at the bin's mean confidence",
        )
        above.plot([0, 1], [0, 1], "--", color="gray", label="perfectly calibrated")
        above.set(ylabel="accuracy", ylim=(0, 1.02), xlim=(0, 1))
        above.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        below.bar(left, calibration.num_images / calibration.num_images.sum(), color=_BARS, **bars)
        below.set(xlabel="confidence", ylabel="images")
        below.yaxis.set_major_formatter("{x:.0%}")

    return _drawn(draw)


def class_plot(accuracies: NDArray[np.float64]) -> Plot:
    """Draws how many classes have which top-1 accuracy.

    Args:
        accuracies: Top-1 of each class, in [0, 1]; (C,) float64.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.hist(accuracies, bins=20, range=(0, 1), color=_BARS)
        mean = float(accuracies.mean())
        axes.axvline(mean, linestyle="--", color=_GAPS, label=f"mean over classes, {mean:.1%}")
        axes.set(xlabel="top-1 accuracy of a class", ylabel="classes", xlim=(0, 1))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper left", frameon=False)

    return _drawn(draw)


def _drawn(draw: Callable[[Figure], None]) -> Plot:
    """Draws the same for both pages."""
    pngs = []
    for name, page in ((_LIGHT, "#ffffff"), (_DARK, _DARK_PAGE)):
        with rc_context(), style.context(name):
            figure = new_figure()
            figure.set_facecolor(page)
            draw(figure)
            for axes in figure.axes:
                axes.set_facecolor(page)
            pngs.append(png_of(figure))
    return Plot(*pngs)
