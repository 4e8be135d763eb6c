"""``fluffle doctor``: what was found on this machine, for a person and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluffle.commands.options import Federation, secure

if TYPE_CHECKING:
    from fluffle.doctor import Finding

_MARKS = {"ok": ("✓", "green"), "lack": ("✗", "yellow"), "note": ("·", "dim")}


@secure
def doctor(
    url: Annotated[
        str, typer.Option("--broker", envvar="FLUFFLE_BROKER", help="Look at this one as well.")
    ] = "",
    federation: Federation = "fluffle",
    api: Annotated[
        str,
        typer.Option(help="Its management API, where that is not http://HOST:15672."),
    ] = "",
    parameters: Annotated[
        int,
        typer.Option(min=0, help="Of a model that shall fit into the broker's messages."),
    ] = 0,
    out: Annotated[Path, typer.Option(help="Where runs shall go.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what this machine has and lacks, and how to get it."""
    from fluffle.doctor import examine, troubles

    findings = examine(
        "" if url in ("embedded", "local") else url, federation, out, api, parameters
    )
    answers = troubles(findings)
    if as_json:
        typer.echo(to_json(findings, answers))
    else:
        show(findings, answers)


def to_json(findings: list[Finding], troubles: dict[str, str]) -> str:
    """One object: ``checks`` by name, ``troubles``, and the names of what is lacking."""
    checks = {finding.name: asdict(finding) for finding in findings}
    lacking = [finding.name for finding in findings if finding.status == "lack"]
    return json.dumps({"checks": checks, "troubles": troubles, "lacking": lacking}, indent=2)


def show(findings: list[Finding], troubles: dict[str, str]) -> None:
    """What is here, what is not and how to get it; then the troubles."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    here = Table.grid(padding=(0, 2, 0, 0))
    for finding in findings:
        mark, style = _MARKS[finding.status]
        said = Text(finding.found)
        if finding.get:
            said.append(f"\n→ {finding.get}", "cyan" if finding.status == "lack" else "dim")
        here.add_row(Text(mark, style), Text(finding.name, "bold"), said)
    console.print(here)
    console.print()
    answers = Table.grid(padding=(0, 2, 0, 0))
    for trouble, answer in troubles.items():
        answers.add_row("?", Text(trouble, "bold"), Text(answer))
    console.print(answers)
    console.print()
    lacks = [finding.name for finding in findings if finding.status == "lack"]
    console.print(f"lacking: {', '.join(lacks)}" if lacks else "nothing is lacking")
