"""The interactive page: the report's curves to hover over, zoom into and pick runs in.

One HTML file that loads nothing: Bokeh's core is in it (1.3 MB; Plotly's would be 4.8 MB).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.embed import components
from bokeh.layouts import column, gridplot
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.models.annotations.legends import Legend, LegendItem
from bokeh.plotting import figure
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fluffle.report.costs import target_of
from fluffle.report.curves import AXES, X, band, metrics_of
from fluffle.report.data import Run
from fluffle.report.series import Series, series_of
from fluffle.report.style import GRID, INK, LINES, MUTED, colour, line

INTERACTIVE = "interactive.html"
_WIDTH, _HEIGHT = 430, 290
#: What a letter, a sample of a line, and a row of the legend take.
_LETTER, _SAMPLE, _ROW = 8, 50, 24
#: Beside each other: what was measured; below each other: what it cost.
_METRICS, _BY = 3, ("time", "updates", "bytes")
_DASHES = dict(zip(LINES, ("solid", "dashed", "dashdot", "dotted"), strict=True))


def write_interactive(runs: Sequence[Run], title: str, out: Path) -> Path | None:
    """Write the page into ``out``; where it is. None, and no page, where nothing was measured."""
    series, page = series_of(runs), out / INTERACTIVE
    found = {name for run in runs for name in metrics_of(run)}
    metrics = sorted(found, key=lambda n: (n != "accuracy", n != "loss", n))[:_METRICS]
    if not metrics:
        page.unlink(missing_ok=True)  # an earlier report's
        return None
    script, plots = components(_plots(runs, series, metrics))
    environment = Environment(
        loader=PackageLoader("fluffle.report", "."), autoescape=True, undefined=StrictUndefined
    )
    text = environment.get_template("interactive.html.j2").render(
        title=title,
        seeds=max(len(one.runs) for one in series),
        bokeh=Markup(Resources(mode="inline", components=["bokeh"]).render()),
        script=Markup(script),
        plots=Markup(plots),
    )
    page.write_text(text, encoding="utf-8")
    return page


def _plots(runs: Sequence[Run], series: Sequence[Series], metrics: Sequence[str]) -> Any:
    drawn: list[list[Any]] = [[] for _ in series]  # of each series, in all plots
    rows: list[list[Any]] = []
    for by in _BY:
        x_of, x_label = AXES[by](runs)
        if by == "time" and not any(np.any(x_of(run)) for run in runs):
            continue  # the virtual clock without [devices]
        rows.append([_plot(runs, series, name, x_of, x_label, drawn) for name in metrics])
    width = _WIDTH * len(metrics)
    return column(_names(series, drawn, width), gridplot(rows, merge_tools=True))


def _names(series: Sequence[Series], drawn: list[list[Any]], width: int) -> Any:
    """The legend, which is a picture of its own: it has a click for all of them."""
    columns = max(1, width // (max(len(one.label) for one in series) * _LETTER + _SAMPLE))
    height = -(-len(series) // columns) * _ROW + _ROW // 2
    plot = figure(
        width=width,
        height=height,
        tools="",
        toolbar_location=None,
        x_range=Range1d(),
        y_range=Range1d(),
    )
    plot.axis.visible = plot.grid.visible = False
    plot.outline_line_color = None
    items = []
    for index, (one, renderers) in enumerate(zip(series, drawn, strict=True)):
        dash = _DASHES[line(index)["linestyle"]]
        sample: Any = plot.line(
            [np.nan], [np.nan], line_color=colour(index), line_dash=dash, line_width=2
        )
        items.append(LegendItem(label={"value": one.label}, renderers=[sample, *renderers]))
    legend = Legend(
        items=items,
        click_policy="hide",
        border_line_color=None,
        location="top_left",
        ncols=columns,
        margin=0,
    )
    plot.add_layout(legend)
    return plot


def _plot(
    runs: Sequence[Run],
    series: Sequence[Series],
    name: str,
    x_of: X,
    x_label: str,
    drawn: list[list[Any]],
) -> Any:
    plot = figure(
        width=_WIDTH,
        height=_HEIGHT,
        x_axis_label=x_label,
        y_axis_label=name.replace("_", " "),
        tools="pan,box_zoom,wheel_zoom,save,reset",
        active_drag="box_zoom",
        output_backend="canvas",
    )
    plot.grid.grid_line_color, plot.outline_line_color = GRID, None
    plot.axis.axis_label_text_font_style, plot.axis.axis_line_color = "normal", MUTED
    points_of_all: list[Any] = []
    for index, one in enumerate(series):
        x, mean, spread = band(one, x_of, name)
        if not len(x):
            continue
        table = {"x": x, "y": mean, "low": mean - spread, "high": mean + spread, "sd": spread}
        source = ColumnDataSource({**table, "label": [one.label] * len(x)})
        if spread.any():
            area = plot.varea(
                "x", "low", "high", source=source, fill_color=colour(index), fill_alpha=0.15
            )
            drawn[index].append(area)
        dash = _DASHES[line(index)["linestyle"]]
        path = plot.line(
            "x", "y", source=source, line_color=colour(index), line_dash=dash, line_width=2
        )
        points = plot.scatter("x", "y", source=source, size=5, fill_color=colour(index))
        points.glyph.line_color = None
        drawn[index] += [path, points]
        points_of_all.append(points)
    seen = [("", "@label"), (x_label, "@x{0,0.[00]}"), (name, "@y{0.0000}")]
    seen += [("± over seeds", "@sd{0.0000}")] if any(len(s.runs) > 1 for s in series) else []
    plot.add_tools(HoverTool(renderers=points_of_all, tooltips=seen))
    target = target_of(list(runs))
    if name == "accuracy" and target is not None:
        plot.hspan(y=[target], line_color=INK, line_dash="dotted", line_width=1)
    return plot
