"""``fluffle verify``: what the checks found, for a person and for an exit code."""

from __future__ import annotations

from contextlib import closing
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluffle.commands.options import Federation, OneObject, RunFolder, secure

if TYPE_CHECKING:
    from fluffle.aggregator.ledger.reader import LedgerReader


@secure
def verify(
    folder: RunFolder,
    replay: Annotated[
        bool, typer.Option("--replay", help="Also recompute every version from the kept updates.")
    ] = False,
    url: Annotated[
        str, typer.Option("--broker", help="Also look at the broker that the run is on.")
    ] = "",
    federation: Federation = "fluffle",
    json: OneObject = False,
) -> None:
    """Check a run against the invariants; exit code 1 names what is wrong first."""
    raise typer.Exit(verify_run(folder, replay=replay, url=url, federation=federation, json=json))


def verify_run(folder: Path, *, replay: bool, url: str, federation: str, json: bool = False) -> int:
    """Check the run in this folder, and say what was found; 0, or 1 where something is wrong.

    Raises: UserError where there is no run, no kept updates to replay, or no broker.
    """
    said, problems = _find(folder, replay, url, federation)
    if json:
        typer.echo(dumps({"ok": not problems, "said": said, "problems": problems}))
        return int(bool(problems))
    for line in said:
        typer.echo(line)
    if problems:
        typer.echo(f"wrong: {problems[0]}")
    if len(problems) > 1:
        typer.echo(f"and {len(problems) - 1} more, which may follow from it")
    return int(bool(problems))


def _find(folder: Path, replay: bool, url: str, federation: str) -> tuple[list[str], list[str]]:
    """Lines on what was found good, and what is wrong."""
    from fluffle.aggregator.ledger.damage import blamed
    from fluffle.aggregator.ledger.reader import LedgerReader

    with blamed(folder), closing(LedgerReader(folder)) as ledger:
        said: list[str] = []
        problems = _check(ledger, replay, said)
        if url and not problems:
            problems = _check_broker(ledger, url, federation, said)
        return said, problems


def _check(ledger: LedgerReader, replay: bool, said: list[str]) -> list[str]:
    from fluffle.aggregator import verify as checks
    from fluffle.aggregator.ledger.summary import summarise

    with ledger.snapshot():
        if problems := checks.verify(ledger):
            return problems
        summary = summarise(ledger)
        rejected = sum(summary["updates_rejected"].values())
        said.append(
            f"ok: {summary['run_id']} ({summary['status']}): {summary['versions']} versions from "
            f"{summary['updates_counted']} updates, {rejected} rejected, {summary['duplicates']} "
            f"duplicates; {len(checks.CHECKS)} checks passed"
        )
        if replay:
            result = checks.replay(ledger)
            if result.problem is not None:
                return [result.problem]
            said.append(f"ok: {result}")
    return []


def _check_broker(ledger: LedgerReader, url: str, federation: str, said: list[str]) -> list[str]:
    from fluffle.aggregator.verify import live
    from fluffle.broker.admin.inspection import inspect_federation

    view = inspect_federation(url, federation)
    with ledger.snapshot():
        problems = list(live.wrong_at_broker(ledger, view))
        end = live.unpublished_end(ledger, view)
        if end is not None:  # perhaps it ended between the two looks
            view = inspect_federation(url, federation)
            end = live.unpublished_end(ledger, view)
        problems += [] if end is None else [end]
        if not problems:
            said.append(f"ok: as far as can be seen at {view.where}:")
        said += [f"  {line}" for line in live.seen_at_broker(ledger, view)]
    return problems
