"""``fluffle verify``: what the checks found, for a person and for an exit code."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluffle.commands.options import Federation, RunFolder, secure

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
) -> None:
    """Check a run against the invariants; exit code 1 names what is wrong first."""
    raise typer.Exit(verify_run(folder, replay=replay, url=url, federation=federation))


def verify_run(folder: Path, *, replay: bool, url: str, federation: str) -> int:
    """Check the run in this folder; the exit code: 0, or 1 where something is wrong.

    Raises: UserError where there is no run, no kept updates to replay, or no broker.
    """
    from fluffle.aggregator.ledger.damage import blamed
    from fluffle.aggregator.ledger.reader import LedgerReader

    with blamed(folder), closing(LedgerReader(folder)) as ledger:
        if _wrong(_check(ledger, replay)):
            return 1
        return int(bool(url) and _wrong(_check_broker(ledger, url, federation)))


def _check(ledger: LedgerReader, replay: bool) -> list[str]:
    from fluffle.aggregator import verify as checks
    from fluffle.aggregator.ledger.summary import summarise

    with ledger.snapshot():
        if problems := checks.verify(ledger):
            return problems
        summary = summarise(ledger)
        rejected = sum(summary["updates_rejected"].values())
        typer.echo(
            f"ok: {summary['run_id']} ({summary['status']}): {summary['versions']} versions from "
            f"{summary['updates_counted']} updates, {rejected} rejected, {summary['duplicates']} "
            f"duplicates; {len(checks.CHECKS)} checks passed"
        )
        if replay:
            result = checks.replay(ledger)
            if result.problem is not None:
                return [result.problem]
            typer.echo(f"ok: {result}")
    return []


def _check_broker(ledger: LedgerReader, url: str, federation: str) -> list[str]:
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
            typer.echo(f"ok: as far as can be seen at {view.where}:")
        for line in live.seen_at_broker(ledger, view):
            typer.echo(f"  {line}")
    return problems


def _wrong(problems: list[str]) -> bool:
    if problems:
        typer.echo(f"wrong: {problems[0]}")
    if len(problems) > 1:
        typer.echo(f"and {len(problems) - 1} more, which may follow from it")
    return bool(problems)
