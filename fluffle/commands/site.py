"""``fluffle site``: a site from its invitation to its end, under a policy of its own."""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fluffle.commands.broker import (
    Api,
    ApiPassword,
    TlsCa,
    Vhost,
    _check_name,
    _keep_passwords,
    print_site,
)
from fluffle.commands.options import Federation, MetricsAddress, MetricsPort, Stay
from fluffle.schemas.errors import UserError

if TYPE_CHECKING:
    from fluffle.schemas import Experiment, Plan
    from fluffle.site_folder import SiteFolder

_log = logging.getLogger(__name__)

app = typer.Typer(help="Be a site, or invite one.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The site's folder.")]
#: Who leaves is waited for so long.
_LEAVE_S = 60.0


@app.command()
def invite(
    name: Annotated[str, typer.Argument(help="The site's client id.")],
    passwords: Annotated[Path, typer.Argument(help="The folder of `fluffle broker users`.")],
    url: Annotated[
        str, typer.Option("--broker", help="As the site will reach it: amqps://host/vhost.")
    ],
    out: Annotated[Path | None, typer.Option(help="Default: NAME.invitation.json.")] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A policy to begin with; the site may change it.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="Who signed the broker's certificate.")] = None,
    redraw: Annotated[bool, typer.Option("--redraw", help="With another password.")] = False,
    federation: Federation = "fluffle",
    vhost: Vhost = "/",
    api: Api = "",
    api_password_file: ApiPassword = None,
    tls_ca: TlsCa = None,
) -> None:
    """Make a site's user on the broker, and one file that has all that the site needs.

    With --api the user is made at once; else the rabbitmqctl lines are printed. The file has the
    site's password in it: send it by a safe way.
    """
    from urllib.parse import urlsplit

    from fluffle.broker.admin.definitions import definitions_of
    from fluffle.broker.admin.permissions import of_resident
    from fluffle.broker.topology import Topology
    from fluffle.site_folder import Invitation
    from fluffle.worker.site.policy import SitePolicy

    _check_name(name)
    parts = urlsplit(url)
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname or "@" in parts.netloc:
        raise UserError("--broker is like amqps://broker.example.org/%2F, without a user")
    if policy is not None:
        SitePolicy.read(policy)
    try:
        certificate = ca.read_text() if ca else ""
        begin = policy.read_text() if policy else ""
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
    words = _keep_passwords(passwords, [name], redraw=[name] if redraw else [])
    rights = {name: of_resident(Topology(federation), name)}
    if api:
        from fluffle.broker.admin.management import Management

        tables = definitions_of(federation, vhost, rights, words, sites=[name])
        Management(api, api_password_file, tls_ca).take(tables)
    else:
        print_site(passwords, name, vhost, rights[name])
    named = parts._replace(netloc=f"{name}@{parts.netloc}").geturl()
    file = out or Path(f"{name}.invitation.json")
    Invitation(name, named, federation, words[name], certificate, begin).write(file)
    typer.echo(
        f"{file}: send it to {name} by a safe way, add the name to participation.residents, and "
        "start the aggregator again",
        err=True,
    )


@app.command()
def init(
    invitation: Annotated[Path, typer.Argument(help="The file that the coordinator has sent.")],
    folder: Folder,
) -> None:
    """Make a site's folder from an invitation: settings, a policy to edit, the password."""
    from fluffle.site_folder import POLICY, SITE, Invitation, SiteFolder

    site = SiteFolder.make(folder, Invitation.read(invitation))
    typer.echo(
        f"{site.name}: name the task and the data in {folder / SITE}, say what you allow in "
        f"{folder / POLICY}; then fluffle site check {folder}"
    )


@app.command()
def check(
    folder: Folder,
    experiment: Annotated[
        Path | None, typer.Option(help="The coordinator's experiment file; else the least.")
    ] = None,
) -> None:
    """Train once on the site's data and show what would be sent. Nothing is."""
    from fluffle.site_folder import POLICY, SiteFolder
    from fluffle.worker.site.policy import SitePolicy

    site = SiteFolder.read(folder)
    policy = SitePolicy.read(folder / POLICY)
    sha256 = site.task_sha256()
    typer.echo(f"task file: SHA-256 {sha256}")
    if objection := policy.objection_to_task(sha256):
        raise UserError(objection)
    for line in dry_run(site, policy, _experiment(site, policy, experiment)):
        typer.echo(line)


@app.command()
def join(
    folder: Folder,
    stay: Stay = False,
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = "127.0.0.1",
) -> None:
    """Take part, under the site's policy, until the run is over."""
    from filelock import FileLock, Timeout

    from fluffle.site_folder import SiteFolder

    site = SiteFolder.read(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{site.name} has joined already: fluffle site leave {folder}") from None
    try:
        (folder / "pid").write_text(str(os.getpid()))
        _join(site, stay, metrics_address, metrics_port)
    finally:
        (folder / "pid").unlink(missing_ok=True)
        lock.release()


@app.command()
def leave(folder: Folder) -> None:
    """End the site that `fluffle site join` has started; what is under way is sent."""
    from filelock import FileLock, Timeout

    from fluffle.site_folder import SiteFolder

    site = SiteFolder.read(folder)
    lock = FileLock(folder / ".lock")
    deadline = time.monotonic() + _LEAVE_S
    told = False
    while time.monotonic() < deadline:
        try:
            with lock.acquire(timeout=0.5):
                typer.echo(f"{site.name} has left" if told else f"{site.name} had not joined")
                return
        except Timeout:
            if not told:
                os.kill(int((folder / "pid").read_text()), signal.SIGTERM)
                told = True
    raise UserError(f"{site.name} has not left within {_LEAVE_S:.0f} s")


def _join(site: SiteFolder, stay: bool, address: str, port: int | None) -> None:
    from fluffle.commands.options import use_task
    from fluffle.commands.service import connect, may_leave_early, metrics_at, serve
    from fluffle.commands.worker import check_site, is_keras
    from fluffle.metrics import WorkerMetrics
    from fluffle.probes import Readiness
    from fluffle.site_folder import AUDIT, POLICY
    from fluffle.worker.services.resident import ResidentService
    from fluffle.worker.site.audit import AuditLog
    from fluffle.worker.site.gate import Gate
    from fluffle.worker.site.policy import SitePolicy
    from fluffle.worker.training.runtime import configure, import_ahead

    check_site(site.name, site.task, "", 1)
    policy = SitePolicy.read(site.folder / POLICY)
    if objection := policy.objection_to_task(site.task_sha256()):
        raise UserError(objection)
    audit = AuditLog(site.folder / AUDIT)
    use_task(site.task, Path(site.data) if site.data else None, 1)
    broker = connect(site.url, site.federation, site.name, None)
    readiness = Readiness()
    with metrics_at(address, port, readiness, "site", site.federation) as registry:
        may_leave_early()
        configure(1)
        if is_keras(site.task):
            import_ahead()
        inner = broker.worker(site.name, 0)
        readiness.waits = inner.waits
        metrics = WorkerMetrics(registry, 1)
        gate = Gate(inner, policy, audit)
        service = ResidentService(
            gate,
            site.name,
            stay=stay,
            objects=gate.objection_to,
            on_model=metrics.on_model,
            on_turn=metrics.on_turn,
        )
        serve(service, gate.close, 0)


def dry_run(site: SiteFolder, policy: Any, experiment: Experiment) -> list[str]:
    """What one training would send, through the same service and gate, to nobody."""
    import tempfile

    from fluffle.broker import Envelope
    from fluffle.broker.embedded import EmbeddedBroker
    from fluffle.commands.options import use_task
    from fluffle.schemas import ClientUpdate, GlobalModel, Run
    from fluffle.worker.services.resident import ResidentService
    from fluffle.worker.site.audit import AuditLog
    from fluffle.worker.site.gate import Gate
    from fluffle.worker.training.per_plan import make_tried_trainer

    use_task(site.task, Path(site.data) if site.data else None, 1)
    plan = _plan(experiment)
    broker = EmbeddedBroker()
    leader, inner = broker.aggregator(), broker.worker(site.name, 0)
    leader.lead(1.0)
    leader.consume(10)
    run = Run(run_id="check", run_started=1, epoch=1)
    weights = make_tried_trainer(plan).initial()
    leader.publish_model(Envelope.of(GlobalModel(run=run, version=0, plan=plan, tensors=weights)))
    with tempfile.TemporaryDirectory() as folder:
        audit = AuditLog(Path(folder) / "audit.jsonl")
        with closing(audit):
            gate = Gate(inner, policy, audit)
            service = ResidentService(
                gate,
                site.name,
                stay=True,
                objects=gate.objection_to,
                on_turn=lambda answer: service.stop(),
            )
            service.run()
            withheld = [e for e in audit.entries() if e["what"] == "withheld"]
    if withheld:
        raise UserError(f"nothing would be sent: {withheld[0]['why']}")
    delivery = leader.receive(1.0)
    while delivery is not None and delivery.is_event:
        delivery = leader.receive(1.0)
    message = delivery.envelope.message() if delivery else None
    if not isinstance(message, ClientUpdate) or delivery is None:
        raise UserError("the training failed: see above")
    return [
        f"would be sent for one version: {delivery.envelope.size} bytes, of these tensors:",
        *(f"  {name}  {a.dtype} {list(a.shape)}" for name, a in message.tensors.items()),
        f"and these numbers: examples {message.examples}, "
        + ", ".join(f"{name} {value:.4g}" for name, value in message.metrics.items()),
    ]


def _plan(experiment: Experiment) -> Plan:
    from fluffle.aggregator.strategies.base import asks_of
    from fluffle.aggregator.strategies.registry import make_strategy
    from fluffle.schemas import Plan

    strategy = make_strategy(experiment)
    return Plan.of(experiment, strategy.sends, asks_of(strategy))


def _experiment(site: SiteFolder, policy: Any, file: Path | None) -> Experiment:
    """The coordinator's, or one that does no more than the policy wants."""
    from fluffle.experiment_file import load_experiment
    from fluffle.schemas import Experiment

    if file is not None:
        return load_experiment(file, [], {})
    steps: list[dict[str, Any]] = []
    if policy.steps.clip_norm is not None:
        steps.append({"kind": "clip", "norm": policy.steps.clip_norm})
    if policy.steps.noise_std is not None:
        steps.append({"kind": "noise", "std": policy.steps.noise_std})
    return Experiment.model_validate(
        {
            "task": {"name": "site.py:Site", "clients": 0},
            "participation": {"residents": [site.name], "identity": "none"},
            "evaluation": {"every_updates": 0},
            **({"update": steps} if steps else {}),
        }
    )
