"""``fluffle report``: figures and a page of a run, or of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fluffle.schemas.errors import UserError


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs, or of a sweep; the first is compared with."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Default: report in the run folder, or beside the first of several."),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(help="Accuracy in (0, 1]; default: the experiment's target_accuracy."),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(min=0, help="Of a worker for an hour; default: the experiment's [cost]."),
    ] = None,
) -> None:
    """Draw what became of a run, or compare several: an HTML page, and figures as SVG and PDF."""
    if target is not None and not 0 < target <= 1:
        raise UserError(f"--target {target}: an accuracy is above 0 and at most 1")
    if price is not None and not price < float("inf"):
        raise UserError(f"--price {price}: a price is a number")
    from fluffle.api.results import run_folders

    try:
        from fluffle.report.page import write_report
    except ModuleNotFoundError as error:
        raise UserError(f"the report needs {error.name}: pip install 'fluffle[report]'") from None

    folder = folders[0] if len(folders) == 1 else folders[0].resolve().parent
    folders = run_folders(folders)  # those of a sweep, where its folder is given
    if not folders:
        raise UserError("there is nothing to report yet: no run in there has made a version")
    typer.echo(write_report(folders, out or folder / "report", target=target, price=price))
