"""``fluffle run``: an experiment from its file to its end, in one command."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
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
    use_code_of,
)
from fluffle.schemas.errors import UserError

if TYPE_CHECKING:
    from fluffle.schemas import Experiment

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
    from fluffle.aggregator.strategies.registry import make_strategy
    from fluffle.commands.summary import STOPPED, exit_as, print_json
    from fluffle.display import Display, print_summary
    from fluffle.experiment_file import load_experiment
    from fluffle.initial import fitted, initial_weights
    from fluffle.invocation import to_paste
    from fluffle.running import check_folder, run_experiment, run_virtual
    from fluffle.tracking import trackers
    from fluffle.worker.tasks.registry import prepare
    from fluffle.worker.training.algorithms.registry import check as check_algorithm
    from fluffle.worker.training.runtime import configure
    from fluffle.worker.training.trial import check

    experiment = load_experiment(file, settings or [], os.environ)
    if clock not in ("real", "virtual"):
        raise UserError(f"--clock {clock}: it is real or virtual")
    if clock == "virtual" and str(context.get_parameter_source("url")).endswith("ENVIRONMENT"):
        url = "embedded"  # the variable is for the workers of this shell
    if clock == "virtual" and (url != "embedded" or workers):
        raise UserError("--clock virtual runs in this process: leave out --broker and --workers")
    check_reachable(experiment, url, clock)
    make_strategy(experiment, file.parent)  # before anything starts: it may not load
    followed = trackers(tensorboard, mlflow, tracker or [])
    name = experiment.experiment.name
    folder = out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    check_folder(folder)
    slots = slots or max(1, (os.cpu_count() or 1) // max(1, workers))
    configure(slots)  # before anybody's code, which may touch TensorFlow
    use_folder_of(file, experiment, data)
    with Display(name, quiet=json) as display:
        prepare(experiment.task.name, display.fetching)
        check(experiment)
        check_algorithm(experiment.training)
        weights = None
        if initial is not None:
            weights = fitted(initial_weights(initial, experiment), experiment)
        if clock == "virtual":
            summary = run_virtual(
                experiment,
                folder,
                display,
                slots=slots,
                code=file.parent,
                initial=weights,
                trackers=followed,
            )
        else:
            summary = run_experiment(
                experiment,
                folder,
                display,
                url=url,
                federation=federation,
                connect_timeout_s=connect_timeout,
                workers=workers,
                slots=slots,
                code=file.parent,
                initial=weights,
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


def check_reachable(experiment: Experiment, url: str, clock: str) -> None:
    """Raises: UserError where resident clients could never reach the run."""
    if experiment.residents and (clock == "virtual" or url in ("embedded", "local")):
        raise UserError(
            "participation.residents are sites with processes of their own, and reach a run over a "
            "RabbitMQ that they share with it: give --broker amqp://…, with the real clock"
        )
    if experiment.identity == "broker" and url == "embedded":
        raise UserError(
            "participation.identity = 'broker' needs a broker that knows users: give --broker "
            "amqp://…, or leave it out"
        )


def use_folder_of(file: Path, experiment: Experiment, data: Path | None) -> None:
    """The task of an experiment is looked for beside its file, here and in worker processes.

    data: where its data are, if not there. Raises: UserError.
    """
    from fluffle.worker.tasks import custom
    from fluffle.worker.tasks.registry import use

    use_code_of(file, experiment)
    if data is not None:
        use(None, data)
        os.environ[custom.DATA] = str(data.resolve())


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
