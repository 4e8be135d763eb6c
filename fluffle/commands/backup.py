"""``fluffle backup``: a copy of a run folder, also while it is led."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fluffle.commands.options import RunFolder


def backup(
    folder: RunFolder,
    to: Annotated[Path, typer.Argument(help="The folder to make.")],
) -> None:
    """Copy a run, also while its aggregator leads; the copy is checked as fluffle verify does."""
    from fluffle.aggregator.ledger.damage import blamed
    from fluffle.backup import back_up

    with blamed(folder):
        version = back_up(folder, to)
    typer.echo(f"{to} has the run as of version {version}")
