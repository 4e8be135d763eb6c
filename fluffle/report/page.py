"""The report: one self-contained HTML page, and its figures as files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fluffle.outputs import may_fill
from fluffle.report import tables
from fluffle.report.costs import target_of
from fluffle.report.data import Run, read_runs
from fluffle.report.figures import PICTURES, Picture
from fluffle.report.interactive import INTERACTIVE, write_interactive
from fluffle.report.series import Series, are_groups, series_of, together
from fluffle.report.style import RC, Empty, inline, save
from fluffle.schemas import UserError
from fluffle.schemas.experiment import CostTable

PAGE = "report.html"
#: So many series have a panel each, in figures that cannot be laid over each other.
_PANELS = 4
#: With more series than this, tables have a row for each and not a column.
_COLUMNS = 5


def write_report(
    folders: Sequence[Path],
    out: Path,
    *,
    target: float | None = None,
    price: float | None = None,
) -> Path:
    """Write the page and its figures into ``out``; where the page is. Raises: UserError.

    target: an accuracy in (0, 1]; price: of a worker for an hour. Default: the experiments'.
    """
    runs = [_with(run, target, price) for run in read_runs(folders)]
    figures = [f"{picture.name}.{kind}" for picture in PICTURES for kind in ("svg", "pdf")]
    may_fill(out, [*figures, INTERACTIVE], PAGE, ": Fluffle report</title>")
    try:
        out.mkdir(parents=True, exist_ok=True)
        sections, left_out = _draw(runs, out)
        page = out / PAGE
        moving = write_interactive(runs, _title(runs), out)
        text = _render(runs, sections, left_out, interactive=moving is not None)
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report into {out}: {error}") from None
    return page


def _with(run: Run, target: float | None, price: float | None) -> Run:
    """The run with another target and price than its experiment's."""
    tables: dict[str, object] = {}
    if target is not None:
        stop = run.experiment.experiment
        tables["experiment"] = stop.model_copy(update={"target_accuracy": target})
    if price is not None:
        currency = {"currency": run.experiment.cost.currency} if run.experiment.cost else {}
        tables["cost"] = CostTable(price_per_worker_hour=price, **currency)
    return run.but(run.experiment.model_copy(update=tables))


def _draw(runs: list[Run], out: Path) -> tuple[list[dict[str, str]], list[str]]:
    """The figures that there are, saved and ready to be inlined; why there are no others."""
    sections, left_out = [], []
    series = series_of(runs)
    drawn = {
        "all": runs,
        "together": [together(one) for one in series],
        "first": [replace(one.first, label=one.label) for one in series][:_PANELS],
    }
    for picture in PICTURES:
        try:
            with mpl.rc_context(RC):
                figure = picture.draw(drawn[picture.of])
        except Empty as why:
            left_out += [f"{picture.title}: {why}."] if str(why) else []
            for path in (out / f"{picture.name}.svg", out / f"{picture.name}.pdf"):
                path.unlink(missing_ok=True)  # an earlier report's
            continue
        save(figure, out, picture.name)
        sections.append(
            {
                **{"name": picture.name, "title": picture.title},
                "caption": _caption(picture, series),
                "svg": Markup(inline(figure, picture.name)),
                # Small figures are not blown up: their text would outgrow the page's.
                "width": f"{math.ceil(figure.get_figwidth() * 130)}px",
            }
        )
    return sections, left_out


def _with_ratio(text: str, ratio: str) -> Markup:
    small = Markup(" <small>{}</small>").format(ratio) if ratio else Markup("")
    return Markup("{}").format(text) + small


def _caption(picture: Picture, series: list[Series]) -> str:
    """What is said below a figure, and of which runs it is where those are not all."""
    said = picture.caption
    if are_groups(series):
        said += {
            "all": " Lines are means over seeds, bands a standard deviation to each side, as far as"
            " all seeds go.",
            "together": " The turns of all seeds together.",
            "first": " Of the first seed of each.",
        }[picture.of]
    if picture.of == "first" and len(series) > _PANELS:
        said += f" The first {_PANELS} of {len(series)} are shown."
    return said


def _title(runs: list[Run]) -> str:
    labels = [one.label for one in series_of(runs)]
    return ", ".join(labels) if len(labels) <= _COLUMNS else f"{len(runs)} runs"


def _render(
    runs: list[Run], sections: list[dict[str, str]], left_out: list[str], *, interactive: bool
) -> str:
    environment = Environment(
        loader=PackageLoader("fluffle.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    target = target_of(runs)
    if target is None:
        why = "there is no target (experiment.target_accuracy, or --target)"
        left_out = [f"Updates, time, bytes and cost to a target accuracy: {why}.", *left_out]
    labels = [one.label for one in series_of(runs)]
    metric, compared = tables.comparison(runs)
    spent = tables.to_target(runs)
    many = len(labels) > _COLUMNS
    return environment.get_template("page.html.j2").render(
        title=_title(runs),
        interactive=INTERACTIVE if interactive else "",
        labels=labels,
        many=many,
        settings=tables.settings(runs),
        metric=metric,
        compared=compared,
        facts=tables.facts(runs),
        target_text=None if target is None else f"{target * 100:.4g} %",
        to_target=bool(spent),
        target_cells={name: [_with_ratio(*cell) for cell in cells] for name, cells in spent},
        sections=sections,
        left_out=left_out,
    )
