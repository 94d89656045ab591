"""A plot of the disparities of data sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stereo_core.data.statistics import Statistics
from stereo_core.files import atomic_path

SHOWN = 0.999  # share of the valid pixels that is shown: a few outliers would squeeze the rest into one bin
MOST_BINS = 96
MAX_SOURCES = 10  # lines that a reader can distinguish


def plot_disparities(sources: Mapping[str, Statistics], total: Statistics, out: Path) -> None:
    """Draw the frequency of disparities, in total and one line per source, with the median and the 95 % quantile.

    Args:
        sources: name -> statistics; for one source, or more than MAX_SOURCES, only the total is drawn.
        total: statistics of all; must have a valid pixel.
        out: the PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display and no pyplot state
    from matplotlib.figure import Figure

    edges = bin_edges(total.quantile(SHOWN))
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="disparity (px)", ylabel="share of the valid pixels per bin")
    axes.stairs(total.histogram(edges) / total.valid, edges, fill=True, color="0.8", label="total")
    drawn = {name: one for name, one in sources.items() if one.valid} if 1 < len(sources) <= MAX_SOURCES else {}
    for name, one in drawn.items():
        axes.stairs(one.histogram(edges) / one.valid, edges, label=name, linewidth=1.5)
    for share, label, style in ((0.5, "median", "--"), (0.95, "95 %", ":")):
        value = total.quantile(share)
        axes.axvline(value, color="0.3", linestyle=style, label=f"{label} of the total: {value:.4g} px")
    axes.set_xlim(0, edges[-1])
    axes.set_title(f"{total.valid:,} valid pixels, bins of {edges[1]:g} px")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=110)


def bin_edges(largest: float) -> np.ndarray:
    """Edges in px from 0 to above `largest`; widths are powers of two, so that each bin has equally many whole
    numbers."""
    width = 2.0 ** math.ceil(math.log2(largest / MOST_BINS))
    return width * np.arange(math.floor(largest / width) + 2)
