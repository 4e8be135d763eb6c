"""``fluffle aggregator``: leads a run, in a process of its own."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path
from typing import Annotated

import typer

from fluffle.commands.options import (
    BrokerUrl,
    ExperimentFile,
    Federation,
    Initial,
    Json,
    MetricsAddress,
    MetricsPort,
    MLflowUri,
    Settings,
    TensorBoardFolder,
    Timeout,
    Trackers,
    secure,
)
from fluffle.schemas.sizes import MB

_log = logging.getLogger(__name__)


@secure
def aggregator(
    file: ExperimentFile,
    url: BrokerUrl,
    out: Annotated[Path, typer.Option(help="Run folder; one that holds a run resumes it.")],
    settings: Settings = None,
    federation: Federation = "fluffle",
    initial: Initial = None,
    stay: Annotated[
        bool,
        typer.Option(
            "--stay", help="Serve metrics when the run is over, until told to stop (Kubernetes)."
        ),
    ] = False,
    connect_timeout: Timeout = 30.0,
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = "127.0.0.1",
    tensorboard: TensorBoardFolder = None,
    mlflow: MLflowUri = None,
    tracker: Trackers = None,
    json: Json = False,
) -> None:
    """Lead a run: consume updates, make versions."""
    from fluffle.aggregator.service import AggregatorService
    from fluffle.aggregator.strategies.registry import make_strategy
    from fluffle.commands.service import connect, may_leave_early, metrics_at, wait_to_be_told
    from fluffle.commands.summary import STOPPED, exit_as, print_json
    from fluffle.device_files import check_travels
    from fluffle.experiment_file import load_experiment
    from fluffle.helper.service import check_helper_key
    from fluffle.initial import initial_weights
    from fluffle.launch import use_code
    from fluffle.metrics import AggregatorMetrics
    from fluffle.probes import Readiness
    from fluffle.running import (
        check_folder,
        new_run_id,
        read_summary,
        say_of_timeouts,
        stopping,
    )
    from fluffle.shipped import experiment_file
    from fluffle.tracking import tracked, trackers
    from fluffle.worker.tasks.registry import check_name

    file = experiment_file(file)
    experiment = load_experiment(file, settings or [], os.environ)
    make_strategy(experiment, file.parent)  # before anything starts: it may not load
    use_code(file.parent, experiment)
    check_name(experiment.task.name)
    followed = trackers(tensorboard, mlflow, tracker or [])
    check_travels(experiment)
    check_helper_key(experiment)
    check_folder(out)
    weights = None if initial is None else initial_weights(initial, experiment)
    broker = connect(url, federation, "aggregator", connect_timeout)
    readiness = Readiness()
    with metrics_at(metrics_address, metrics_port, readiness, "aggregator", federation) as registry:
        may_leave_early(STOPPED)
        metrics = AggregatorMetrics(registry, out, federation)
        port = broker.aggregator()
        readiness.waits = port.waits
        say_of_timeouts(experiment, port)
        service = AggregatorService(
            experiment,
            port,
            out,
            run_id=new_run_id(experiment),
            initial=weights,
            code=file.parent,
            on_timing=metrics.on_timing,
        )
        metrics.service = service
        try:
            with stopping(service.stop), tracked(service, followed):
                outcome = service.run()
            if stay and outcome != "stopped":
                wait_to_be_told(outcome)
        finally:
            port.close()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
    led = service.coordinator is not None or service.outcome is not None
    found_finished = service.coordinator is None and outcome == "finished"
    summary = read_summary(out, round(peak_mb, 1), led)
    _log.info("%s: %s", outcome, out)
    if found_finished:
        _log.info(
            "this run was finished before, and nothing was done: name another --out (with Compose: "
            "RUN=NAME), or raise experiment.versions"
        )
    if json:
        print_json(summary)
    if outcome == "stopped":
        raise typer.Exit(STOPPED)
    exit_as(summary)
