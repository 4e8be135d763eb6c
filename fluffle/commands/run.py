"""``fluffle run``: an experiment from its file to its end, in one command."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from fluffle.commands.options import (
    Data,
    ExperimentFile,
    Federation,
    Initial,
    Json,
    MLflowUri,
    Settings,
    TensorBoardFolder,
    Timeout,
    Trackers,
    secure,
)

_log = logging.getLogger(__name__)


@secure
def run(
    context: typer.Context,
    file: ExperimentFile,
    url: Annotated[
        str,
        typer.Option(
            "--broker",
            envvar="FLUFFLE_BROKER",
            help="embedded (in this process), local (a private RabbitMQ node) or amqp://…",
        ),
    ] = "embedded",
    clock: Annotated[
        str, typer.Option(help="real, or virtual: time is simulated, training is not.")
    ] = "real",
    workers: Annotated[
        int, typer.Option(min=0, help="Worker processes. 0: threads in this process.")
    ] = 0,
    slots: Annotated[
        int, typer.Option(min=0, help="Clients trained at the same time, per worker. 0: by cores.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder. One that holds this experiment's run resumes it."),
    ] = None,
    settings: Settings = None,
    initial: Initial = None,
    data: Data = None,
    federation: Federation = "fluffle",
    connect_timeout: Timeout = 30.0,
    tensorboard: TensorBoardFolder = None,
    mlflow: MLflowUri = None,
    tracker: Trackers = None,
    json: Json = False,
) -> None:
    """Run an experiment, or resume it."""
    from fluffle.commands.summary import STOPPED, exit_as, print_json
    from fluffle.display import Display, print_summary
    from fluffle.experiment_file import load_experiment
    from fluffle.invocation import to_paste
    from fluffle.launch import launch, new_folder
    from fluffle.shipped import experiment_file
    from fluffle.tracking import trackers

    file = experiment_file(file)
    experiment = load_experiment(file, settings or [], os.environ)
    if clock == "virtual" and str(context.get_parameter_source("url")).endswith("ENVIRONMENT"):
        url = "embedded"  # the variable is for the workers of this shell
    followed = trackers(tensorboard, mlflow, tracker or [])
    name = experiment.experiment.name
    folder = out or new_folder(name)
    with Display(name, quiet=json) as display:
        summary = launch(
            *(experiment, folder, display),
            code=file.parent,
            clock=clock,
            url=url,
            federation=federation,
            connect_timeout_s=connect_timeout,
            workers=workers,
            slots=slots,
            initial=initial,
            data=data,
            trackers=followed,
        )
        display.rest()
        if json:
            print_json(summary)
        else:
            print_summary(display.console, summary, folder)
        if summary["status"] == "stopped":
            again = to_paste(*given(context, without="out"), "--out", folder)
            _log.warning("stopped; to resume: %s", again)
            raise typer.Exit(STOPPED)
    exit_as(summary)


def given(context: Any, without: str) -> Iterator[str]:
    """The words of this command line, options first named as declared, but for one option.

    A URL that holds a password is not repeated.
    """
    if context.parent is not None:
        yield from given(context.parent, without)
    if context.parent is not None:
        yield str(context.info_name)
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        value = context.params.get(str(parameter.name))
        if parameter.name == without or source is None or source.name != "COMMANDLINE":
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            if parameter.param_type_name == "argument":
                yield str(one)
            elif isinstance(one, bool):
                yield parameter.opts[0] if one else parameter.secondary_opts[0]
            else:
                secret = parameter.name == "url" and urlsplit(str(one)).password
                yield from (parameter.opts[0], "URL" if secret else str(one))
