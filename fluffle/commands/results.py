"""``fluffle results``: what came of runs, as a table for other programs and for papers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fluffle.commands.sweep import Target
from fluffle.outputs import may_replace
from fluffle.schemas.errors import UserError

_SUFFIXES = {"csv": ".csv", "parquet": ".parquet", "json": ".json", "latex": ".tex"}


def results(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, and of sweeps.")],
    kind: Annotated[
        str, typer.Option("--format", help="csv, parquet, json or latex (booktabs).")
    ] = "csv",
    out: Annotated[Path | None, typer.Option(help="A file; default: stdout.")] = None,
    over_seeds: Annotated[
        bool,
        typer.Option(
            "--over-seeds", help="A row for each setting: mean and standard deviation over seeds."
        ),
    ] = False,
    target: Target = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Write a row for each run: the settings in which they differ, and what came of them."""
    from fluffle.api import results as made

    kind = "json" if json else kind
    if target is not None and not 0 < target <= 1:
        raise UserError(f"--target {target}: an accuracy is above 0 and at most 1")
    if kind not in made.FORMATS:
        raise UserError(f"--format {kind}: it is {', '.join(made.FORMATS)}")
    rows = made.rows_of(folders, target)
    if not rows:
        raise UserError("there is nothing to show yet: no run in there has made a version")
    if over_seeds:
        rows = made.over_seeds(rows, made.settings_in(rows))
    if out is not None:
        may_replace(out, [_SUFFIXES[kind]], "--out")
    text = made.write_rows(rows, kind, out)
    typer.echo(out if text is None else text, nl=text is None)
