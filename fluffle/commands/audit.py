"""``fluffle audit``: a site's log of what it received and sent, checked and exported."""

from __future__ import annotations

import csv
import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from fluffle.commands.options import OneObject

app = typer.Typer(help="Look at the audit log of a site.", no_args_is_help=True)

Log = Annotated[Path, typer.Argument(help="The site's audit.jsonl.")]
_COLUMNS = (
    *("n", "time", "what", "type", "run_id", "version", "base_version", "bytes", "rho", "why"),
    *("objection", "message_id", "body_sha256", "sha256"),
)


@app.command()
def verify(
    log: Log,
    head: Annotated[
        str, typer.Option(help="A hash that an earlier check has printed: it has to be in there.")
    ] = "",
    json: OneObject = False,
) -> None:
    """Check every line: what was edited, removed or added is found. Exit code 2 says where."""
    from fluffle.worker.site import audit

    count, last = audit.verify(log, head)
    if json:
        typer.echo(dumps({"entries": count, "head": last}))
    else:
        typer.echo(f"ok: {count} entries, the last one is {last}")


@app.command()
def export(
    log: Log,
    out: Annotated[Path | None, typer.Option(help="A CSV file; else standard output.")] = None,
) -> None:
    """Check the log, and write it as a table (CSV)."""
    from fluffle.outputs import may_replace
    from fluffle.worker.site import audit

    audit.verify(log)
    rows = [
        {**entry, "time": datetime.fromtimestamp(entry["at"], UTC).isoformat()}
        for entry in audit.read(log)
    ]
    if out is not None:
        may_replace(out, [".csv"], "--out")
    with out.open("w", newline="") if out else nullcontext(sys.stdout) as file:
        table = csv.DictWriter(file, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    if out:
        typer.echo(f"{out}: {len(rows)} entries")
