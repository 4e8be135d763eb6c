"""Options that several commands share, and what is done with them before a command starts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from fluffle.shipped import completions

ExperimentFile = Annotated[
    Path,
    typer.Argument(
        help="The experiment file (TOML), or the name of one that Fluffle brings: mnist.",
        autocompletion=completions,
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: aggregation.quorum=5."),
]
BrokerUrl = Annotated[
    str, typer.Option("--broker", envvar="FLUFFLE_BROKER", help="amqp://user:password@host/vhost")
]
Federation = Annotated[str, typer.Option(help="Prefix of all names on the broker.")]
Timeout = Annotated[
    float, typer.Option("--connect-timeout", help="Seconds to try for a first connection.")
]
Initial = Annotated[
    Path | None,
    typer.Option(
        help="Weights of version 0: a Keras model (.keras), of which is taken what fits; a .npz of "
        "fluffle export, or a weights file of another run's folder."
    ),
]
TaskFile = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="FILE.py:Class, whatever the experiment names. Else looked for in "
        "FLUFFLE_TASK, a folder.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        envvar="FLUFFLE_TASK_DATA",
        help="The data of a task from a file: its data_dir. Default: the file's folder.",
    ),
]
Name = Annotated[str, typer.Option(help="Default: host and process id.")]
Stay = Annotated[bool, typer.Option(help="Wait for the next run when one is over.")]
MetricsPort = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Serve Prometheus metrics there; 0: any free port."),
]
MetricsAddress = Annotated[str, typer.Option(help="Who may scrape: 0.0.0.0 for every machine.")]
TensorBoardFolder = Annotated[
    Path | None,
    typer.Option("--tensorboard", help="Event files for TensorBoard, in a folder for each run."),
]
MLflowUri = Annotated[
    str | None,
    typer.Option("--mlflow", metavar="URI", help="Log to this MLflow tracking server or store."),
]
Trackers = Annotated[
    list[str] | None,
    typer.Option("--tracker", metavar="NAME", help="A tracker of your own: PATH/FILE.py:Class."),
]
Json = Annotated[
    bool, typer.Option("--json", help="The last line on stdout is the summary object.")
]
OneObject = Annotated[bool, typer.Option("--json", help="One object on stdout: docs/json.md.")]
Parent = Annotated[int, typer.Option(hidden=True, help="Leave when this process is gone.")]

#: Flag -> what its file holds. The variable is FLUFFLE_ and the flag's name.
_FILES = {
    "--tls-ca": "The certificate of the authority that signed RabbitMQ's (PEM).",
    "--tls-cert": "Our own certificate (PEM).",
    "--tls-key": "Its key (PEM, unencrypted).",
    "--password-file": "The password of the user in the broker's URL.",
}


def secure(command: Callable[..., None]) -> Callable[..., None]:
    """A command with ``url`` that also takes files with secrets, and gets a URL that has it all."""
    options = {flag.strip("-").replace("-", "_"): flag for flag in _FILES}

    @wraps(command)
    def complete(**given: Any) -> None:
        files = [given.pop(name) for name in options]
        if given["url"].startswith("amqp"):  # not embedded, local or none
            from fluffle.broker.rabbitmq.address import completed

            given["url"] = completed(given["url"], *files)
        command(**given)

    hints = get_type_hints(command, include_extras=True)
    for name, flag in options.items():
        option = typer.Option(flag, envvar=f"FLUFFLE_{name.upper()}", help=_FILES[flag])
        hints[name] = Annotated[Path | None, option]
    own = inspect.signature(command).parameters.values()
    added = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in options]
    complete.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [one.replace(annotation=hints[one.name]) for one in (*own, *added)]
    )
    complete.__annotations__ = hints
    return complete


def use_task(task: str | None, data: Path | None, slots: int) -> None:
    """Load the file that ``--task`` names, and remember ``--data``. Raises: UserError."""
    if task is None and data is None:
        return
    from fluffle.worker.tasks.registry import use
    from fluffle.worker.training.runtime import configure

    if task is not None:
        configure(slots)  # before the user's code, which may touch TensorFlow
    use(task, data)
