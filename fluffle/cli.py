"""The command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from fluffle.data import data_app
from fluffle.schemas.errors import UserError
from fluffle.secrets_in_files import secure
from fluffle.users import broker_app

app = typer.Typer(
    help="Asynchronous, dropout-tolerant federated learning over RabbitMQ.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data_app, name="data")
app.add_typer(broker_app, name="broker")

File = Annotated[Path, typer.Argument(help="The experiment file (TOML).")]
Settings = Annotated[
    Optional[list[str]],  # noqa: UP045 typer reads it
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: aggregation.quorum=5."),
]
BrokerUrl = Annotated[
    str, typer.Option("--broker", envvar="FLUFFLE_BROKER", help="amqp://user:password@host/vhost")
]
Federation = Annotated[str, typer.Option(help="Prefix of all names on the broker.")]
Timeout = Annotated[
    float, typer.Option("--connect-timeout", help="Seconds to try for a first connection.")
]
TaskFile = Annotated[
    Optional[str],  # noqa: UP045 typer reads it
    typer.Option(
        "--task",
        help="FILE.py:Class, whatever the experiment names. Else looked for in "
        "FLUFFLE_TASK, a folder.",
    ),
]
Data = Annotated[
    Optional[Path],  # noqa: UP045 typer reads it
    typer.Option(
        envvar="FLUFFLE_TASK_DATA",
        help="The data of a task from a file: its data_dir. Default: the file's folder.",
    ),
]
Slots = Annotated[int, typer.Option(min=1, help="Clients trained at the same time.")]
MetricsPort = Annotated[
    Optional[int],  # noqa: UP045 typer reads it
    typer.Option(min=0, max=65535, help="Serve Prometheus metrics there; 0: any free port."),
]
MetricsAddress = Annotated[str, typer.Option(help="Who may scrape: 0.0.0.0 for every machine.")]
TensorBoard = Annotated[
    Optional[Path],  # noqa: UP045 typer reads it
    typer.Option("--tensorboard", help="Event files for TensorBoard, in a folder for each run."),
]
MLflow = Annotated[
    Optional[str],  # noqa: UP045 typer reads it
    typer.Option("--mlflow", metavar="URI", help="Log to this MLflow tracking server or store."),
]
Parent = Annotated[int, typer.Option(hidden=True, help="Leave when this process is gone.")]


@app.command()
@secure
def run(
    file: File,
    broker: Annotated[
        str,
        typer.Option(
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
        Optional[Path],  # noqa: UP045 typer reads it
        typer.Option(help="Run folder. One that holds this experiment's run resumes it."),
    ] = None,
    settings: Settings = None,
    data: Data = None,
    federation: Federation = "fluffle",
    connect_timeout: Timeout = 30.0,
    tensorboard: TensorBoard = None,
    mlflow: MLflow = None,
    json: Annotated[
        bool, typer.Option("--json", help="The last line on stdout is the summary object.")
    ] = False,
) -> None:
    """Run an experiment, or resume it."""
    from fluffle.aggregator.strategies.registry import make_strategy
    from fluffle.custom_task import check_reachable, use_folder_of
    from fluffle.display import Display, print_summary
    from fluffle.experiment_file import load_experiment
    from fluffle.run import run_experiment, run_virtual
    from fluffle.tracking import trackers
    from fluffle.worker.tasks.registry import check, prepare

    experiment = load_experiment(file, settings or [], os.environ)
    if clock not in ("real", "virtual"):
        raise UserError(f"--clock {clock}: it is real or virtual")
    if clock == "virtual" and (broker != "embedded" or workers):
        raise UserError("--clock virtual runs in this process: leave out --broker and --workers")
    check_reachable(experiment, broker, clock)
    make_strategy(experiment, file.parent)  # before anything starts: it may not load
    followed = trackers(tensorboard, mlflow)
    name = experiment.experiment.name
    folder = out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    slots = slots or max(1, (os.cpu_count() or 1) // max(1, workers))
    use_folder_of(file, experiment, slots, data)
    with Display(name, quiet=json) as display:
        prepare(experiment.task.name, display.fetching)
        check(
            experiment.task,
            experiment.partition,
            experiment.experiment.seed,
            experiment.evaluation.by_client,
        )
        if clock == "virtual":
            summary = run_virtual(
                experiment, folder, display, slots=slots, code=file.parent, trackers=followed
            )
        else:
            summary = run_experiment(
                experiment,
                folder,
                display,
                broker=broker,
                federation=federation,
                connect_timeout_s=connect_timeout,
                workers=workers,
                slots=slots,
                code=file.parent,
                trackers=followed,
            )
    _print_summary(summary, json, lambda: print_summary(display.console, summary, str(folder)))
    if summary["status"] == "running":  # stopped before its end
        again = " ".join(
            ["fluffle run", str(file), *_flags(broker, workers, clock, settings, data)]
        )
        display.say(f"stopped; to resume: {again} --out {folder}")
        raise typer.Exit(130)
    _exit(summary)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or an empty folder.")],
) -> None:
    """Write a first experiment with a task of your own, which runs as it stands."""
    from fluffle.start import write_start

    for path in write_start(folder):
        typer.echo(path)
    typer.echo(f"next: fluffle run {folder / 'experiment.toml'}")


@app.command()
@secure
def aggregator(
    file: File,
    broker: BrokerUrl,
    out: Annotated[Path, typer.Option(help="Run folder; one that holds a run resumes it.")],
    settings: Settings = None,
    federation: Federation = "fluffle",
    initial: Annotated[
        Optional[Path],  # noqa: UP045 typer reads it
        typer.Option(help="Weights of version 0: a weights file of another run's folder."),
    ] = None,
    connect_timeout: Timeout = 30.0,
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = "127.0.0.1",
    tensorboard: TensorBoard = None,
    mlflow: MLflow = None,
    json: Annotated[
        bool, typer.Option("--json", help="The last line on stdout is the summary object.")
    ] = False,
) -> None:
    """Lead a run: consume updates, make versions."""
    from fluffle.aggregator.strategies.registry import make_strategy
    from fluffle.experiment_file import load_experiment
    from fluffle.services import connect, lead, metrics_at
    from fluffle.tracking import trackers

    experiment = load_experiment(file, settings or [], os.environ)
    make_strategy(experiment, file.parent)  # before anything starts: it may not load
    followed = trackers(tensorboard, mlflow)
    place = connect(broker, federation, "aggregator", connect_timeout)
    with metrics_at(metrics_address, metrics_port) as registry:
        summary = lead(experiment, place, out, initial, registry, file.parent, followed)
    _print_summary(summary, json, lambda: None)
    _exit(summary)


@app.command()
@secure
def worker(
    broker: BrokerUrl,
    slots: Slots = 1,
    name: Annotated[str, typer.Option(help="Default: host and process id.")] = "",
    client_id: Annotated[
        str, typer.Option(help="Be this resident client: a site that trains on its own --data.")
    ] = "",
    task: TaskFile = None,
    data: Data = None,
    federation: Federation = "fluffle",
    stay: Annotated[bool, typer.Option(help="Wait for the next run when one is over.")] = False,
    journal: Annotated[
        Optional[Path],  # noqa: UP045 typer reads it
        typer.Option(help="Append there, as JSON lines, what is sent and what is confirmed."),
    ] = None,
    state: Annotated[
        Optional[Path],  # noqa: UP045 typer reads it
        typer.Option(
            help="Where clients keep what they need for their next turn (SCAFFOLD, error "
            "feedback). Default: the user's folder for such; share it between machines."
        ),
    ] = None,
    simulate_devices: Annotated[
        bool,
        typer.Option(
            "--simulate-devices",
            envvar="FLUFFLE_SIMULATE_DEVICES",
            help="Live what [devices] of the experiment says: delays, losses, lies. Not for sites.",
        ),
    ] = False,
    connect_timeout: Annotated[
        Optional[float],  # noqa: UP045 typer reads it
        typer.Option(help="Seconds to try for a first connection. Default: 30; a site for ever."),
    ] = None,
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = "127.0.0.1",
    parent: Parent = 0,
) -> None:
    """Train clients. Needs nothing but the broker's URL: the plan travels with the model.

    With --client-id it is a site: one resident client, which trains on its own data.
    """
    from fluffle.custom_task import check_site, use_task
    from fluffle.services import connect, default_name, metrics_at, reside, work

    if client_id:
        check_site(client_id, task, name, slots)
        if simulate_devices:
            raise UserError("--client-id is a site, which never simulates: no --simulate-devices")
    use_task(task, data, slots)
    name = client_id or name or default_name("worker")
    timeout = connect_timeout if connect_timeout is not None or client_id else 30.0
    place = connect(broker, federation, name, timeout)
    with metrics_at(metrics_address, metrics_port) as registry:
        if client_id:
            reside(place, name, stay, journal, parent, registry)
        else:
            work(
                *(place, name, slots, stay, journal, state, parent, registry),
                simulate_devices=simulate_devices,
            )


@app.command()
@secure
def evaluator(
    broker: BrokerUrl,
    name: Annotated[str, typer.Option(help="Default: host and process id.")] = "",
    federation: Federation = "fluffle",
    stay: Annotated[bool, typer.Option(help="Wait for the next run when one is over.")] = False,
    task: TaskFile = None,
    data: Data = None,
    connect_timeout: Timeout = 30.0,
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = "127.0.0.1",
    parent: Parent = 0,
) -> None:
    """Measure versions of the global model on held-out examples."""
    from fluffle.custom_task import use_task
    from fluffle.services import connect, default_name, evaluate, metrics_at

    use_task(task, data, 1)
    name = name or default_name("evaluator")
    place = connect(broker, federation, name, connect_timeout)
    with metrics_at(metrics_address, metrics_port) as registry:
        evaluate(place, name, stay, parent, registry)


@app.command()
@secure
def verify(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    replay: Annotated[
        bool, typer.Option("--replay", help="Also recompute every version from the kept updates.")
    ] = False,
    broker: Annotated[
        str, typer.Option("--broker", help="Also look at the broker that the run is on.")
    ] = "",
    federation: Federation = "fluffle",
) -> None:
    """Check a run against the invariants; exit code 1 names what is wrong first."""
    from fluffle.verify import verify_run

    code = verify_run(folder, replay=replay, broker=broker, federation=federation)
    raise typer.Exit(code)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders; the first is compared with.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045 typer reads it
        typer.Option(help="Default: report in the run folder, or beside the first of several."),
    ] = None,
    target: Annotated[
        Optional[float],  # noqa: UP045 typer reads it
        typer.Option(help="Accuracy in (0, 1]; default: the experiment's target_accuracy."),
    ] = None,
    price: Annotated[
        Optional[float],  # noqa: UP045 typer reads it
        typer.Option(min=0, help="Of a worker for an hour; default: the experiment's [cost]."),
    ] = None,
) -> None:
    """Draw what became of a run, or compare several: an HTML page, and figures as SVG and PDF."""
    if target is not None and not 0 < target <= 1:
        raise UserError(f"--target {target}: an accuracy is above 0 and at most 1")
    if price is not None and not price < float("inf"):
        raise UserError(f"--price {price}: a price is a number")
    try:
        from fluffle.report.page import write_report
    except ModuleNotFoundError as error:
        raise UserError(f"the report needs {error.name}: pip install 'fluffle[report]'") from None

    folder = folders[0] if len(folders) == 1 else folders[0].resolve().parent
    typer.echo(write_report(folders, out or folder / "report", target=target, price=price))


@app.command("export")
def export_run(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    kind: Annotated[
        str,
        typer.Option("--format", help="keras, saved_model or npz: weights; csv or jsonl: metrics."),
    ] = "keras",
    version: Annotated[
        str, typer.Option(help="last, best (the best evaluated one) or a number.")
    ] = "last",
    out: Annotated[
        Optional[Path],  # noqa: UP045 typer reads it
        typer.Option(help="Where to. Default: in the run folder, model.keras or the like."),
    ] = None,
    task: TaskFile = None,
    data: Data = None,
) -> None:
    """Write a run's model for Keras, TensorFlow or NumPy, or its metrics as a table."""
    from fluffle.custom_task import use_task
    from fluffle.export import export

    if kind in ("keras", "saved_model"):
        use_task(task, data, 1)
    typer.echo(export(folder, kind, version, out))


@app.command()
@secure
def doctor(
    broker: Annotated[
        str, typer.Option("--broker", envvar="FLUFFLE_BROKER", help="Look at this one as well.")
    ] = "",
    federation: Federation = "fluffle",
    out: Annotated[Path, typer.Option(help="Where runs shall go.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what this machine has and lacks, and how to get it."""
    from fluffle.doctor import as_json, examine, show, troubles

    url = "" if broker in ("embedded", "local") else broker
    findings = examine(url, federation, out)
    answers = troubles(findings)
    if json:
        typer.echo(as_json(findings, answers))
    else:
        show(findings, answers)


def _exit(summary: dict[str, Any]) -> None:
    """Code 0 for what ended well, 1 for an abort by policy; a failure is somebody's to mend: 2."""
    if summary["status"] == "failed":
        raise UserError(f"the run failed: {summary['detail']}")
    if summary["status"] == "aborted":
        raise typer.Exit(1)


def _print_summary(summary: dict[str, Any], as_json: bool, otherwise: Any) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(summary))
    else:
        otherwise()


def _flags(
    broker: str, workers: int, clock: str, settings: list[str] | None, data: Path | None
) -> list[str]:
    flags = [f"--set {setting}" for setting in settings or []]
    if data is not None:
        flags.append(f"--data {data}")
    if clock != "real":
        flags.append(f"--clock {clock}")
    if workers:
        flags.append(f"--workers {workers}")
    if broker != "embedded":
        flags.append(f"--broker {broker if broker == 'local' else 'URL'}")
    return flags


def main() -> None:
    """Entry point: what a person can mend is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"fluffle: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
