"""``fluffle verify``: what the checks found, for a person and for an exit code."""

from __future__ import annotations

from pathlib import Path

import typer

from aggregator.reading import LedgerReader
from aggregator.summary import summarise
from aggregator.verify import CHECKS, verify
from aggregator.verify import replay as replayed


def verify_run(folder: Path, replay: bool) -> int:
    """Check the run in this folder; the exit code: 0, or 1 where something is wrong.

    Raises: UserError where there is no run, or no kept updates to replay.
    """
    ledger = LedgerReader(folder)
    try:
        with ledger.snapshot():
            return _verify(ledger, replay)
    finally:
        ledger.close()


def _verify(ledger: LedgerReader, replay: bool) -> int:
    if problems := verify(ledger):
        return _wrong(problems)
    summary = summarise(ledger)
    rejected = sum(summary["updates_rejected"].values())
    typer.echo(
        f"ok: {summary['run_id']} ({summary['status']}): {summary['versions']} versions from "
        f"{summary['updates_counted']} updates, {rejected} rejected, {summary['duplicates']} "
        f"duplicates; {len(CHECKS)} checks passed"
    )
    if replay:
        result = replayed(ledger)
        if result.problem is not None:
            return _wrong([result.problem])
        typer.echo(f"ok: {result}")
    return 0


def _wrong(problems: list[str]) -> int:
    typer.echo(f"wrong: {problems[0]}")
    if len(problems) > 1:
        typer.echo(f"and {len(problems) - 1} more, which may follow from it")
    return 1
