"""``fluffle watch``: a page that shows runs while they go on."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from fluffle.schemas.errors import UserError


def watch(
    folders: Annotated[
        list[Path], typer.Argument(help="Run folders, or folders of runs: those to come too.")
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="On this machine alone; 0: any free port.")
    ] = 8080,
    address: Annotated[
        str,
        typer.Option(
            help="Where to listen. In a container 0.0.0.0, with its port published on 127.0.0.1.",
        ),
    ] = "127.0.0.1",
) -> None:
    """Show runs in a browser while they go on: curves, who trained, what was rejected.

    Reads ledgers and changes nothing; Ctrl-C ends the page, and no run.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: name a run folder, or one of runs")
    try:
        from fluffle.live.server import LiveServer
    except ModuleNotFoundError as error:
        raise UserError(f"the page needs {error.name}: pip install 'fluffle[watch]'") from None
    from fluffle.live.runs import Runs

    server = LiveServer(Runs(folders), port, address)
    typer.echo(f"watching at {server.url}  (Ctrl-C ends it)")
    # To be told to end is no failure: without a handler of ours uvicorn would die of the signal.
    signal.signal(signal.SIGTERM, lambda *_: server.end())
    server.serve()
