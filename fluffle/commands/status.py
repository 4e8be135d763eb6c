"""``fluffle status``: how a run stands and who is there, from its folder, its broker, or both."""

from __future__ import annotations

import json as json_module
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fluffle.commands.options import Federation, secure
from fluffle.schemas.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


@secure
def status(
    folder: Annotated[
        Path | None, typer.Argument(help="A run folder, where the aggregator is.")
    ] = None,
    url: Annotated[
        str,
        typer.Option(
            "--broker", envvar="FLUFFLE_BROKER", help="Look at this broker: from any machine."
        ),
    ] = "",
    federation: Federation = "fluffle",
    json: Annotated[bool, typer.Option("--json", help="One object, on one line.")] = False,
) -> None:
    """Say how a run stands: its version, who leads, what waits, and each site.

    Of a broker it only looks: nothing is declared, taken or sent.
    """
    from rich.console import Console

    if folder is None and not url.startswith("amqp"):
        raise UserError("name a run folder, a broker (--broker amqp://…), or both")
    found: dict[str, Any] = {}
    if folder is not None:
        found["run"] = of_folder(folder)
    if url.startswith("amqp"):
        found["broker"] = of_broker(url, federation)
    if json:
        typer.echo(json_module.dumps(found))
        return
    console = Console(highlight=False)
    if "run" in found:
        _print_run(console, found["run"])
    if "broker" in found:
        _print_broker(console, found["broker"])


def of_folder(folder: Path) -> dict[str, Any]:
    """What the ledger says. Raises: UserError."""
    from fluffle.aggregator.ledger.damage import blamed
    from fluffle.aggregator.ledger.reader import LedgerReader
    from fluffle.aggregator.ledger.sites import sites
    from fluffle.aggregator.ledger.summary import summarise

    with blamed(folder), closing(LedgerReader(folder)) as ledger, ledger.snapshot():
        summary = summarise(ledger)
        made = ledger.query("SELECT made_at FROM versions ORDER BY version DESC LIMIT 1")
        experiment = json_module.loads(ledger.meta["experiment"])["experiment"]
        return {
            **{key: summary[key] for key in ("run_id", "status", "detail", "versions")},
            "of_versions": experiment["versions"],
            "made_at": made[0][0] if made else None,
            "updates_counted": summary["updates_counted"],
            "updates_rejected": summary["updates_rejected"],
            "failures": summary["failures"],
            "dropouts": summary["dropouts"],
            "metrics": summary["metrics"],
            "sites": [asdict(site) for site in sites(ledger)],
        }


def of_broker(url: str, federation: str) -> dict[str, Any]:
    """What an onlooker sees. Raises: UserError."""
    from fluffle.broker.admin.inspection import inspect_federation

    view = inspect_federation(url, federation)
    newest = view.newest
    keys = ("run_id", "epoch", "version", "attempt", "final")
    return {
        "where": view.where,
        "federation": federation,
        "led": view.led,
        "updates_waiting": view.updates,
        "rejected_kept": view.rejected,
        "newest": {key: newest.headers.get(key) for key in keys} if newest else None,
        "unseen": view.unseen,
    }


def _print_run(console: Console, run: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    rejected = sum(run["updates_rejected"].values())
    detail = f" ({run['detail']})" if run["detail"] else ""
    lines = [
        ("run", f"{run['run_id']}: {run['status']}{detail}"),
        ("version", f"{run['versions']} of {run['of_versions']}, made {_ago(run['made_at'])}"),
        ("updates", f"{run['updates_counted']} counted, {rejected} rejected"),
        ("lost", f"{run['failures']} failures, {run['dropouts']} dropouts"),
        *[(name, f"{value:.4g}") for name, value in run["metrics"].items()],
    ]
    _print(console, lines)
    if run["sites"]:
        table = Table(
            "site", "last seen", "trained from", "counted", "failed", "rejected", box=None
        )
        for site in run["sites"]:
            version = "–" if site["version"] is None else f"version {site['version']}"
            numbers = (str(site[key]) for key in ("counted", "failed", "rejected"))
            table.add_row(Text(site["name"]), _ago(site["seen_at"]), version, *numbers)
        console.print(table)


def _print_broker(console: Console, broker: dict[str, Any]) -> None:
    newest = broker["newest"]
    model = "none"
    if newest:
        last = ", the last" if newest["final"] else ""
        model = f"version {newest['version']} of run {newest['run_id']}{last}"
    leads = {True: "an aggregator leads", False: "nobody leads", None: "not to be seen"}
    _print(
        console,
        [
            ("broker", f"{broker['where']}, federation {broker['federation']}"),
            ("lead", leads[broker["led"]]),
            ("newest model", model),
            ("waiting", _count(broker["updates_waiting"], "updates")),
            ("rejected", _count(broker["rejected_kept"], "copies kept")),
            *[("not seen", one) for one in broker["unseen"]],
        ],
    )


def _print(console: Console, lines: list[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for key, value in lines:
        grid.add_row(Text(key, "dim"), Text(value))
    console.print(grid)


def _count(number: int | None, what: str) -> str:
    return "not to be seen" if number is None else f"{number} {what}"


def _ago(at: float | None) -> str:
    if at is None:
        return "–"
    seconds = max(0, round(time.time() - at))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"
