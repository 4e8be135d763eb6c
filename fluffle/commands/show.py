"""``fluffle show``: what a run folder holds, in a few lines."""

from __future__ import annotations

import json as json_module
from contextlib import closing
from typing import Annotated, Any

import typer

from fluffle.commands.options import RunFolder


def show(
    folder: RunFolder,
    json: Annotated[bool, typer.Option("--json", help="One object, on one line.")] = False,
) -> None:
    """Say what a run is: how it stands, its settings that are not defaults, what it ran with."""
    from rich.console import Console

    from fluffle.aggregator.ledger.damage import blamed
    from fluffle.aggregator.ledger.reader import LedgerReader
    from fluffle.aggregator.ledger.record import read_environments
    from fluffle.aggregator.ledger.summary import summarise
    from fluffle.settings import given

    with blamed(folder), closing(LedgerReader(folder)) as ledger:
        from fluffle.schemas import Experiment

        experiment = Experiment.stored(ledger.meta["experiment"])
        clock = ledger.meta.get("clock", "real")
        summary = summarise(ledger)
    environments = read_environments(folder)
    settings = given(experiment)
    if json:
        about = {"summary": summary, "clock": clock, "settings": settings}
        typer.echo(json_module.dumps(about | {"environments": environments}))
        return
    _print(Console(highlight=False), summary, clock, settings, environments)


def _print(
    console: Any,
    summary: dict[str, Any],
    clock: str,
    settings: dict[str, Any],
    environments: list[dict[str, Any]],
) -> None:
    from rich.table import Table
    from rich.text import Text

    from fluffle.display import readable
    from fluffle.settings import shown

    detail = f" ({summary['detail']})" if summary["detail"] else ""
    rejected = sum(summary["updates_rejected"].values())
    rows = [
        ("run", summary["run_id"]),
        ("status", f"{summary['status']}{detail}"),
        ("clock", clock),
        ("versions", f"{summary['versions']:,}"),
        ("updates", f"{summary['updates_counted']:,} counted, {rejected:,} rejected"),
        *readable(summary["metrics"]),
        ("time", f"{summary['wall_s']:,.1f} s{' (virtual)' if clock == 'virtual' else ''}"),
        *[(name, shown(value)) for name, value in settings.items()],
    ]
    for found in environments:
        packages = ", ".join(f"{k} {v}" for k, v in found.get("packages", {}).items())
        rows.append((f"since {found.get('since')}", f"Python {found.get('python')}, {packages}"))
    grid = Table.grid(padding=(0, 2))
    for key, value in rows:
        grid.add_row(Text(key, "dim"), Text(value))  # the names of others are no markup
    console.print(grid)
