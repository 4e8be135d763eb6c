"""The style of figures: on paper, and in a page that is light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter


class Empty(Exception):
    """There is nothing to draw; the message says why."""


#: Inches: the text width of most papers.
WIDTH = 6.9
INK, MUTED, GRID, NOTHING = "#1a1a1b", "#6b6b6c", "#dedede", "#ededee"
#: Okabe and Ito's palette, which tells apart for every kind of colour vision; two of its yellows
#: and black left out. Each run also has a line style of its own, for print without colours.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINES = ("-", "--", "-.", ":")
#: Perceptually even, and readable without colour vision.
HEAT = "viridis"

#: Any: Matplotlib types the keys of one of its versions.
RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    # Labels are names of folders: a dollar in them is no formula.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "fluffle",
    "pdf.fonttype": 42,
    "figure.dpi": 150,
}

_SECONDS = ((2 * 86400.0, 86400.0, "days"), (7200.0, 3600.0, "h"), (600.0, 60.0, "min"))


def seconds_unit(most: float) -> tuple[float, str]:
    """What to divide seconds by, and what they are then called."""
    return next(((by, name) for above, by, name in _SECONDS if most >= above), (1.0, "s"))


def digits(value: float, how_many: int = 3) -> str:
    """So many digits that mean something: 0.0123, 4.50, 739, 12,300."""
    rounded = float(f"{value:.{how_many}g}")
    if rounded == 0:
        return "0"
    if abs(rounded) >= 10 ** (how_many - 1):
        return f"{rounded:,.0f}"
    return f"{rounded:#.{how_many}g}"


def plain(value: float, _: object = None) -> str:
    """A tick's number."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


PLAIN = FuncFormatter(plain)


def colour(index: int) -> str:
    """The colour of the run with this index."""
    return SERIES[index % len(SERIES)]


def line(index: int) -> dict[str, Any]:
    """Colour and line style of the run with this index: 24 pairs, no two alike."""
    style = (index + index // (len(SERIES) * len(LINES) // 2)) % len(LINES)
    return {"color": colour(index), "linestyle": LINES[style]}


#: Inches that a letter, and a row, of a legend take.
_LETTER, _ROW, _HANDLE = 0.062, 0.165, 0.45


def legend_above(
    figure: Figure, labels: Sequence[str], handles: Sequence[Any], columns: int = 4
) -> None:
    """What each colour is, above all axes and over the figure's whole width, which grows for it.

    There may be more handles than labels.
    """
    # Matplotlib drops labels that begin with an underscore.
    shown = [label.lstrip("_") or "run" for label in labels]
    widest = max(map(len, shown)) * _LETTER + _HANDLE
    figure.set_figwidth(min(max(figure.get_figwidth(), widest), WIDTH))
    columns = min(columns, max(1, int(figure.get_figwidth() / widest)), len(shown))
    rows = -(-len(shown) // columns)
    figure.set_figheight(figure.get_figheight() + _ROW * rows)
    figure.legend(
        handles[: len(shown)], shown, loc="outside upper left", ncols=columns, borderaxespad=0.2
    )


def save(figure: Figure, folder: Path, name: str) -> None:
    """``name.svg`` and ``name.pdf``, the same bytes for the same figure."""
    with mpl.rc_context({**RC, "savefig.facecolor": "white"}):
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def inline(figure: Figure, name: str) -> str:
    """The figure as an SVG element whose colours are the page's; ``name`` makes its ids unique."""
    buffer = io.StringIO()
    with mpl.rc_context(RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    # The page sets the size; the view box keeps the shape.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    variables = {INK: "ink", MUTED: "muted", GRID: "grid", NOTHING: "nothing"}
    variables |= {value: f"series-{i}" for i, value in enumerate(SERIES)}
    for value, variable in variables.items():
        svg = svg.replace(value, f"var(--{variable})")
    return svg
