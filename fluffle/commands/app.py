"""The command ``fluffle``: all commands, and the options before them."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Annotated

import typer

from fluffle import logs
from fluffle.commands import audit, broker, data, site
from fluffle.commands.aggregator import aggregator
from fluffle.commands.backup import backup
from fluffle.commands.doctor import doctor
from fluffle.commands.evaluator import evaluator
from fluffle.commands.export import export
from fluffle.commands.helper import helper
from fluffle.commands.init import init
from fluffle.commands.report import report
from fluffle.commands.results import results
from fluffle.commands.run import run
from fluffle.commands.show import show
from fluffle.commands.status import status
from fluffle.commands.sweep import sweep
from fluffle.commands.verify import verify
from fluffle.commands.watch import watch
from fluffle.commands.worker import worker
from fluffle.schemas.errors import UserError

app = typer.Typer(
    help="Asynchronous, dropout-tolerant federated learning over RabbitMQ.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # Rich's own would take [cost] for a style
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fluffle {version('fluffle')}")
        raise typer.Exit


@app.callback()
def fluffle(
    context: typer.Context,
    log_level: Annotated[
        str,
        typer.Option(envvar="FLUFFLE_LOG_LEVEL", help="debug, info, warning or error."),
    ] = "info",
    log_format: Annotated[
        str,
        typer.Option(envvar="FLUFFLE_LOG_FORMAT", help="text, or json: one object a line."),
    ] = "text",
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Say which it is."),
    ] = False,
) -> None:
    """Asynchronous, dropout-tolerant federated learning over RabbitMQ."""
    level = log_level.lower()
    if level not in logs.LEVELS:
        raise UserError(f"--log-level {log_level}: it is {', '.join(logs.LEVELS)}")
    if log_format == "text":
        context.with_resource(logs.installed(level, "text"))
    elif log_format == "json":
        context.with_resource(logs.installed(level, "json"))
    else:
        raise UserError(f"--log-format {log_format}: it is text or json")
    # Worker processes of a run log alike.
    os.environ.update(FLUFFLE_LOG_LEVEL=level, FLUFFLE_LOG_FORMAT=log_format)


for command in (
    *(run, sweep, init, aggregator, worker, evaluator, helper),
    *(verify, show, status, watch, report, results, export, backup, doctor),
):
    app.command()(command)
app.add_typer(data.app, name="data")
app.add_typer(broker.app, name="broker")
app.add_typer(site.app, name="site")
app.add_typer(audit.app, name="audit")
