"""``fluffle export``: what came out of a run, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fluffle.commands.options import Data, RunFolder, TaskFile, use_task


def export(
    folder: RunFolder,
    kind: Annotated[
        str,
        typer.Option("--format", help="keras, saved_model or npz: weights; csv or jsonl: metrics."),
    ] = "keras",
    version: Annotated[
        str, typer.Option(help="last, best (the best evaluated one) or a number.")
    ] = "last",
    out: Annotated[
        Path | None,
        typer.Option(help="Where to. Default: in the run folder, model.keras or the like."),
    ] = None,
    client: Annotated[
        str | None,
        typer.Option(help="The model of this client, where it keeps weights (weights.keep)."),
    ] = None,
    task: TaskFile = None,
    data: Data = None,
) -> None:
    """Write a run's model for Keras, TensorFlow or NumPy, or its metrics as a table."""
    from fluffle import export as exports

    if kind in ("keras", "saved_model"):
        use_task(task, data, 1)
    typer.echo(exports.export(folder, kind, version, out, client))
