"""``fluffle broker``: RabbitMQ users of least rights for each role and each site."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluffle.commands.options import Federation
from fluffle.schemas.errors import UserError

if TYPE_CHECKING:
    from fluffle.broker.admin.permissions import Rights

app = typer.Typer(help="Prepare a RabbitMQ server.", no_args_is_help=True)

Passwords = Annotated[
    Path, typer.Argument(help="Folder for one password file for each user; drawn where missing.")
]
Sites = Annotated[
    list[str] | None,
    typer.Option("--site", help="The client id of a resident client; again for each."),
]
Pool = Annotated[bool, typer.Option(help="With a user for the workers of a pool.")]
Vhost = Annotated[str, typer.Option(help="RabbitMQ's virtual host.")]


@app.command()
def users(
    passwords: Passwords,
    site: Sites = None,
    pool: Pool = True,
    federation: Federation = "fluffle",
    vhost: Vhost = "/",
) -> None:
    """Print the rabbitmqctl lines that make the users; pipe them into sh on the broker's machine.

    Passwords are drawn once and kept in files that only you can read; they are not printed.
    """
    from fluffle.broker.admin.definitions import SITE_LIMITS, policies_of

    rights = _rights(federation, site or (), pool)
    _keep_passwords(passwords, rights)
    for name, their in rights.items():
        file = _file_of(passwords, name).absolute()
        _print("add_user", name, then=f" < {shlex.quote(str(file))}")
        _print("set_permissions", "-p", vhost, name, their.configure, their.write, their.read)
    for name in site or ():
        _print("set_user_limits", name, json.dumps(SITE_LIMITS))
    for policy in policies_of(federation):
        _print(
            *(f"set_{policy.kind}", "-p", vhost, "--apply-to", "queues"),
            *("--priority", str(policy.priority), policy.name, policy.pattern),
            json.dumps(policy.limits),
        )


@app.command()
def definitions(
    out: Annotated[Path, typer.Argument(help="The file to write, for load_definitions.")],
    passwords: Passwords,
    site: Sites = None,
    pool: Pool = True,
    admin: Annotated[bool, typer.Option(help="With a user for RabbitMQ's UI: admin.")] = False,
    federation: Federation = "fluffle",
    vhost: Vhost = "/",
) -> None:
    """Write the same users, rights and limits as a definitions file, with hashed passwords.

    A user's password is what a variable says (WORKER_PASSWORD, by the user's name), else what its
    file says, else drawn. None is printed.
    """
    from fluffle.broker.admin.definitions import definitions_of
    from fluffle.broker.admin.permissions import of_admin
    from fluffle.outputs import may_replace

    may_replace(out, [".json"], "OUT")
    rights = _rights(federation, site or (), pool) | ({"admin": of_admin()} if admin else {})
    words = _keep_passwords(passwords, rights, os.environ)
    tables = definitions_of(federation, vhost, rights, words)
    try:
        out.write_text(json.dumps(tables, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    for name in rights:
        typer.echo(f"{name}: its password is in {_file_of(passwords, name)}")


def _rights(federation: str, sites: Sequence[str], pool: bool) -> dict[str, Rights]:
    """What each user may do, the sites last. Raises: UserError."""
    from fluffle.broker.admin import permissions
    from fluffle.broker.topology import Topology

    names = Topology(federation)
    rights = {
        "aggregator": permissions.of_aggregator(names),
        "evaluator": permissions.of_evaluator(names),
        **({"worker": permissions.of_pool_worker(names)} if pool else {}),
    }
    for name in sites:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name) or name in rights:
            raise UserError(
                f"{name!r} is no name for a site: letters, digits, - and _, not a role's name"
            )
    return rights | {name: permissions.of_resident(names, name) for name in sites}


def _keep_passwords(
    folder: Path,
    names: Sequence[str] | Mapping[str, object],
    given: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Each user's password, which is in its file from now on. Raises: UserError."""
    words = {}
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            file = _file_of(folder, name)
            word = (given or {}).get(f"{name.upper()}_PASSWORD") or ""
            if not file.exists():
                file.touch(0o600)
                word = word or secrets.token_urlsafe(24)
            if word:
                file.write_text(f"{word}\n")
            if file.parent != folder:
                file.chmod(0o444)  # whoever has the volume is the user
            words[name] = word or file.read_text().strip()
            if not re.fullmatch(r".{1,1024}", words[name]):
                raise UserError(f"{file} holds no password: it is one line of text")
    except UnicodeDecodeError:
        raise UserError(f"{file} holds no password: it is one line of text") from None
    except OSError as error:
        raise UserError(f"cannot keep passwords in {folder}: {error.strerror}") from None
    return words


def _file_of(folder: Path, name: str) -> Path:
    """In ``folder``, or, where that has a folder for each user (a volume, say), in theirs."""
    return folder / name / "password" if (folder / name).is_dir() else folder / name


def _print(*words: str, then: str = "") -> None:
    typer.echo(f"rabbitmqctl {shlex.join(words)}{then}")
