"""The end of a run, for programs and for an exit code."""

from __future__ import annotations

import json
from typing import Any

import typer

from fluffle.schemas.errors import UserError

#: Exit code of who was stopped before the end: the same command goes on.
STOPPED = 130


def print_json(summary: dict[str, Any]) -> None:
    """One line on stdout."""
    typer.echo(json.dumps(summary))


def exit_as(summary: dict[str, Any]) -> None:
    """Code 0 for what ended well, 1 for an abort by policy; a failure is somebody's to mend: 2."""
    if summary["status"] == "failed":
        raise UserError(f"the run failed: {summary['detail']}")
    if summary["status"] == "aborted":
        raise typer.Exit(1)
