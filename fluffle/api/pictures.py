"""Pictures and pages of runs, where Matplotlib and Jinja2 are there and asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fluffle.schemas import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What a curve may be drawn by.
BY = ("time", "updates", "bytes", "cost")


def plot(folders: Sequence[Path], metric: str, by: str) -> Figure:
    """The curves of these runs. Raises: UserError."""
    if by not in BY:
        raise UserError(f"by={by!r}: it is {', '.join(BY)}")
    try:
        from fluffle.report.curves import one_metric
        from fluffle.report.data import read_runs
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    return one_metric(read_runs(folders), metric, by)


def report(
    folders: Sequence[Path], out: Path | None, target: float | None, price: float | None
) -> Path:
    """Write the page and its figures; where the page is. Raises: UserError."""
    try:
        from fluffle.report.page import write_report
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    folder = folders[0] if len(folders) == 1 else folders[0].resolve().parent
    return write_report(folders, out or folder / "report", target=target, price=price)


def _missing(error: ModuleNotFoundError) -> UserError:
    return UserError(f"figures need {error.name}: pip install 'fluffle[report]'")
