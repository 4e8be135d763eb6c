"""The confusion of the final model, drawn from what ``fluffle export`` has counted."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fluffle.report.data import Ints, Run
from fluffle.report.style import HEAT, WIDTH, Empty

#: Up to so many classes a cell has room for its number.
_NUMBERED = 15


def confusion(runs: list[Run]) -> Figure:
    """Of each true class the share that was taken for each class, a panel for each run."""
    told = [(run.label, run.confusion) for run in runs if run.confusion is not None]
    if not any(np.isfinite(run.evaluations.accuracy).any() for run in runs):
        raise Empty("")  # nothing was classified
    if not told:
        raise Empty("no confusion.json (fluffle export DIR, on a machine with TensorFlow)")
    columns = min(2, len(told))
    rows = -(-len(told) // columns)
    size = WIDTH * (1 if columns == 2 else 0.62), 3.4 * rows
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (label, counts) in zip(panels, told, strict=False):
        _panel(axes, counts)
        if len(runs) > 1:
            axes.set_title(label)
    for axes in panels[len(told) :]:
        axes.set_axis_off()
    return figure


def _panel(axes: Axes, counts: Ints) -> None:
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap=HEAT, vmin=0, vmax=1)
    axes.grid(visible=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(20, integer=True))
    if len(counts) <= _NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column]:
                text = f"{share * 100:.0f}"
                # White on the dark half of the scale, black on the bright one.
                ink = "black" if share > 0.6 else "white"
                axes.text(column, row, text, ha="center", va="center", size=6.5, color=ink)
