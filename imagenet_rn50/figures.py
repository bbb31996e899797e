"""Figures: one size and one way into a PNG file for everything that is drawn."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from imagenet_rn50.files import write_bytes

_SIZE_INCHES = (7.0, 4.0)
_DPI = 120


def new_figure() -> Figure:
    """Returns an empty figure; it belongs to no window system."""
    return Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")


def png_of(figure: Figure) -> bytes:
    """Returns a figure as PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all."""
    write_bytes(path, png_of(figure))
