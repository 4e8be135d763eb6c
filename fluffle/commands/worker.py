"""``fluffle worker``: trains clients, or is one site, in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluffle.commands.options import (
    BrokerUrl,
    Data,
    Federation,
    MetricsAddress,
    MetricsPort,
    Name,
    Parent,
    Stay,
    TaskFile,
    secure,
    use_task,
)
from fluffle.schemas import Experiment, UserError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from fluffle.broker.rabbitmq.broker import RabbitMQBroker
    from fluffle.probes import Readiness
    from fluffle.worker.services.journal import Journal


@secure
def worker(
    url: BrokerUrl,
    slots: Annotated[int, typer.Option(min=1, help="Clients trained at the same time.")] = 1,
    lanes: Annotated[
        int,
        typer.Option(
            min=0,
            help="Train on JAX: take so many turns at a time, for steps of the experiment's lanes.",
        ),
    ] = 0,
    name: Name = "",
    client_id: Annotated[
        str, typer.Option(help="Be this resident client: a site that trains on its own --data.")
    ] = "",
    task: TaskFile = None,
    data: Data = None,
    federation: Federation = "fluffle",
    stay: Stay = False,
    journal: Annotated[
        Path | None,
        typer.Option(help="Append there, as JSON lines, what is sent and what is confirmed."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="Where clients keep what they need for their next turn (SCAFFOLD, error "
            "feedback, personal layers). Default: the user's folder for such; workers share it "
            "between machines, and a site keeps it to itself."
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
        float | None,
        typer.Option(help="Seconds to try for a first connection. Default: 30; a site for ever."),
    ] = None,
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = "127.0.0.1",
    parent: Parent = 0,
) -> None:
    """Train clients. Needs nothing but the broker's URL: the plan travels with the model.

    With --client-id it is a site: one resident client, which trains on its own data.
    """
    from fluffle.commands.service import connect, default_name, may_leave_early, metrics_at
    from fluffle.probes import Readiness
    from fluffle.worker.services.journal import Journal
    from fluffle.worker.training.runtime import configure, import_ahead

    engine = "jax" if lanes else None
    if lanes and slots > 1:
        raise UserError("--lanes says how many turns are taken at a time: leave out --slots")
    slots = lanes or slots
    if client_id:
        check_site(client_id, task, name, slots)
        if simulate_devices:
            raise UserError("--client-id is a site, which never simulates: no --simulate-devices")
    use_task(task, data, slots)
    name = client_id or name or default_name("worker")
    timeout = connect_timeout if connect_timeout is not None or client_id else 30.0
    broker = connect(url, federation, name, timeout)
    readiness = Readiness()
    with metrics_at(
        metrics_address, metrics_port, readiness, "site" if client_id else "worker", federation
    ) as registry:
        may_leave_early()
        kept = Journal(journal)
        configure(slots, engine)
        if is_keras(task):
            import_ahead()
        if client_id:
            _reside(broker, name, stay, kept, state, parent, registry, readiness)
        else:
            _work(
                *(broker, name, slots, stay, kept, state, parent, registry, readiness),
                simulate_devices=simulate_devices,
            )


def is_keras(task: str | None) -> bool:
    """Whether the task that was told is Keras's, as those are that come with Fluffle."""
    if task is None:
        return True
    from fluffle.worker.tasks import custom
    from fluffle.worker.tasks.arrays import ArrayTask

    return not issubclass(custom.load(task), ArrayTask)


def check_site(client: str, task: str | None, name: str, slots: int) -> None:
    """Raises: UserError where this cannot be a resident client."""
    from pydantic import ValidationError

    from fluffle.schemas.extensions import FOLDER

    if name or slots > 1:
        raise UserError("--client-id is one client: leave out --name, --slots and --lanes")
    try:
        Experiment.model_validate({"participation": {"residents": [client]}})
    except ValidationError:
        raise UserError(
            f"--client-id {client}: use letters, digits, - and _, 64 at most and not digits alone"
        ) from None
    if task is None and FOLDER not in os.environ:
        raise UserError(
            "a site trains with a task file of its own: give --task FILE.py:Class, or set "
            f"{FOLDER} to the folder that has the file which the experiment names"
        )


def _work(
    broker: RabbitMQBroker,
    name: str,
    slots: int,
    stay: bool,
    journal: Journal,
    state: Path | None,
    parent: int,
    registry: CollectorRegistry,
    readiness: Readiness,
    *,
    simulate_devices: bool,
) -> None:
    from fluffle.commands.service import serve
    from fluffle.metrics import WorkerMetrics
    from fluffle.worker.services.client_state import ClientStates, state_folder
    from fluffle.worker.services.worker import WorkerService

    metrics = WorkerMetrics(registry, slots)
    port = broker.worker(name, slots)
    readiness.waits = port.waits
    service = WorkerService(
        port,
        name,
        slots,
        stay=stay,
        journal=journal,
        states=ClientStates(state or state_folder(), memory_bytes=0),
        simulate_devices=simulate_devices,
        on_model=metrics.on_model,
        on_turn=metrics.on_turn,
    )
    serve(service, port.close, parent)


def _reside(
    broker: RabbitMQBroker,
    client: str,
    stay: bool,
    journal: Journal,
    state: Path | None,
    parent: int,
    registry: CollectorRegistry,
    readiness: Readiness,
) -> None:
    from fluffle.commands.service import serve
    from fluffle.metrics import WorkerMetrics
    from fluffle.worker.services.client_state import ClientStates, state_folder
    from fluffle.worker.services.resident import ResidentService

    metrics = WorkerMetrics(registry, 1)
    port = broker.worker(client, 0)
    readiness.waits = port.waits
    service = ResidentService(
        port,
        client,
        stay=stay,
        journal=journal,
        states=ClientStates(state or state_folder(), memory_bytes=0),
        on_model=metrics.on_model,
        on_turn=metrics.on_turn,
    )
    serve(service, port.close, parent)
