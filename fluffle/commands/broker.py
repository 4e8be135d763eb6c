"""``fluffle broker users``: a RabbitMQ user of least rights for each role and each site."""

from __future__ import annotations

import json
import re
import secrets
import shlex
from pathlib import Path
from typing import Annotated

import typer

from fluffle.commands.options import Federation
from fluffle.schemas.errors import UserError

app = typer.Typer(help="Prepare a RabbitMQ server.", no_args_is_help=True)

#: A site has two connections; two more while it reconnects.
_SITE_LIMITS = {"max-connections": 4, "max-channels": 16}
#: A mailbox holds one model. This holds for queues that somebody declares otherwise as well, and
#: what nobody consumes from goes.
_MAILBOXES = {"max-length": 1, "expires": 600_000}
#: RabbitMQ takes no policy for a stream that has a key that streams lack, so they have their own,
#: below the other in priority. A stream keeps its last segment, which its owner could make huge:
#: for that there is an ordinary policy only, and a site may make none.
_STREAMS = {"max-length-bytes": 16 * 1024**2}
_SEGMENTS = {"stream-max-segment-size-bytes": 4 * 1024**2, "max-age": "1m"}
#: An event is a hundred bytes; what is longer must not fill a disk.
_EVENTS = {"max-length-bytes": 16 * 1024**2}


@app.command()
def users(
    passwords: Annotated[Path, typer.Argument(help="Folder for one password file for each user.")],
    site: Annotated[
        list[str] | None,
        typer.Option(help="The client id of a resident client; again for each."),
    ] = None,
    pool: Annotated[bool, typer.Option(help="With a user for the workers of a pool.")] = True,
    federation: Federation = "fluffle",
    vhost: Annotated[str, typer.Option(help="RabbitMQ's virtual host.")] = "/",
) -> None:
    """Print the rabbitmqctl lines that make the users; pipe them into sh on the broker's machine.

    Passwords are drawn once and kept in files that only you can read; they are not printed.
    """
    from fluffle.broker.admin.permissions import (
        of_aggregator,
        of_evaluator,
        of_pool_worker,
        of_resident,
    )
    from fluffle.broker.topology import Topology

    names = Topology(federation)
    roles = {
        "aggregator": of_aggregator(names),
        "evaluator": of_evaluator(names),
        **({"worker": of_pool_worker(names)} if pool else {}),
    }
    for name in site or ():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name) or name in roles:
            raise UserError(
                f"{name!r} is no name for a site: letters, digits, - and _, not a role's name"
            )
    sites = {name: of_resident(names, name) for name in site or ()}
    _keep_passwords(passwords, [*roles, *sites])
    for name, rights in {**roles, **sites}.items():
        _print("add_user", name, then=f" < {shlex.quote(str((passwords / name).absolute()))}")
        _print("set_permissions", "-p", vhost, name, rights.configure, rights.write, rights.read)
    for name in sites:
        _print("set_user_limits", name, json.dumps(_SITE_LIMITS))
    mailboxes = r"worker\..*"
    for kind, what, priority, pattern, limits in (
        ("operator_policy", "mailboxes", 1, mailboxes, _MAILBOXES),
        ("operator_policy", "streams", 0, mailboxes, _STREAMS),
        ("policy", "streams", 0, mailboxes, _SEGMENTS),
        ("operator_policy", "events", 0, "events", _EVENTS),
    ):
        _print(
            *(f"set_{kind}", "-p", vhost, "--apply-to", "queues", "--priority", str(priority)),
            *(f"{federation}-{what}", rf"^{re.escape(federation)}\.{pattern}$"),
            json.dumps(limits),
        )


def _keep_passwords(folder: Path, names: list[str]) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            if not (folder / name).exists():
                (folder / name).touch(0o600)
                (folder / name).write_text(f"{secrets.token_urlsafe(24)}\n")
    except OSError as error:
        raise UserError(f"cannot keep passwords in {folder}: {error.strerror}") from None


def _print(*words: str, then: str = "") -> None:
    typer.echo(f"rabbitmqctl {shlex.join(words)}{then}")
