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
Helper = Annotated[
    bool, typer.Option("--helper", help="With a user for the helper of secure aggregation.")
]
Vhost = Annotated[str, typer.Option(help="RabbitMQ's virtual host.")]


Redraw = Annotated[
    list[str] | None,
    typer.Option("--redraw", metavar="USER", help="Draw another password for this user; again."),
]
Declared = Annotated[
    bool,
    typer.Option(
        "--declared",
        help="With the exchanges and queues: the aggregator gets no right to make them.",
    ),
]
Api = Annotated[
    str,
    typer.Option(
        "--api",
        metavar="URL",
        envvar="FLUFFLE_API",
        help="Do it by RabbitMQ's management API: https://ADMIN@HOST:15671.",
    ),
]
ApiPassword = Annotated[
    Path | None,
    typer.Option(
        "--api-password-file", envvar="FLUFFLE_API_PASSWORD_FILE", help="The administrator's."
    ),
]
TlsCa = Annotated[
    Path | None,
    typer.Option("--tls-ca", envvar="FLUFFLE_TLS_CA", help="Who signed the API's certificate."),
]


@app.command()
def users(
    passwords: Passwords,
    site: Sites = None,
    pool: Pool = True,
    helper: Helper = False,
    redraw: Redraw = None,
    federation: Federation = "fluffle",
    vhost: Vhost = "/",
    api: Api = "",
    api_password_file: ApiPassword = None,
    tls_ca: TlsCa = None,
) -> None:
    """Print the rabbitmqctl lines that make the users, to pipe into sh on the broker's machine.

    With --api they are made at once, from any machine. Passwords are drawn once and kept in files
    that only you can read; they are not printed. What is there already becomes as told, so the same
    command with one more --site adds a site, and with --redraw it changes a password.
    """
    from fluffle.broker.admin.definitions import SITE_LIMITS, definitions_of, policies_of

    rights = _rights(federation, site or (), pool, helper=helper)
    words = _keep_passwords(passwords, rights, redraw=redraw or ())
    if api:
        from fluffle.broker.admin.management import Management

        management = Management(api, api_password_file, tls_ca)
        management.take(definitions_of(federation, vhost, rights, words, sites=site or ()))
        for name in rights:
            typer.echo(f"{name}: its password is in {_file_of(passwords, name)}")
        return
    for name, their in rights.items():
        _print_user(passwords, name, vhost, their)
    for name in site or ():
        _print("set_user_limits", name, json.dumps(SITE_LIMITS))
    for policy in policies_of(federation):
        _print(
            *(f"set_{policy.kind}", "-p", vhost, "--apply-to", "queues"),
            *("--priority", str(policy.priority), policy.name, policy.pattern),
            json.dumps(policy.limits),
        )


@app.command()
def remove(
    user: Annotated[str, typer.Argument(help="A site's client id, or a role.")],
    passwords: Annotated[
        Path | None, typer.Option(help="The folder of password files: its own is deleted.")
    ] = None,
    api: Api = "",
    api_password_file: ApiPassword = None,
    tls_ca: TlsCa = None,
) -> None:
    """Put a user out: its connections end at once. Prints the rabbitmqctl line, or asks --api."""
    _check_name(user)
    if api:
        from fluffle.broker.admin.management import Management

        there = Management(api, api_password_file, tls_ca).remove_user(user)
        typer.echo(f"{user} is {'removed' if there else 'not there'}")
    else:
        _print("delete_user", user)
    if passwords is not None:
        _file_of(passwords, user).unlink(missing_ok=True)


@app.command()
def definitions(
    out: Annotated[Path, typer.Argument(help="The file to write, for load_definitions.")],
    passwords: Passwords,
    site: Sites = None,
    pool: Pool = True,
    admin: Annotated[bool, typer.Option(help="With a user for RabbitMQ's UI: admin.")] = False,
    declared: Declared = False,
    helper: Helper = False,
    redraw: Redraw = None,
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
    rights = _rights(federation, site or (), pool, declared, helper)
    rights |= {"admin": of_admin()} if admin else {}
    words = _keep_passwords(passwords, rights, os.environ, redraw or ())
    tables = definitions_of(federation, vhost, rights, words, sites=site or (), declared=declared)
    try:
        out.write_text(json.dumps(tables, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    for name in rights:
        typer.echo(f"{name}: its password is in {_file_of(passwords, name)}")


def print_site(passwords: Path, name: str, vhost: str, rights: Rights) -> None:
    """The rabbitmqctl lines of one site."""
    from fluffle.broker.admin.definitions import SITE_LIMITS

    _print_user(passwords, name, vhost, rights)
    _print("set_user_limits", name, json.dumps(SITE_LIMITS))


def _print_user(passwords: Path, name: str, vhost: str, their: Rights) -> None:
    file = f" < {shlex.quote(str(_file_of(passwords, name).absolute()))}"
    _print("add_user", name, then=f"{file} 2> /dev/null || \\")
    _print("change_password", name, then=file)
    _print("set_permissions", "-p", vhost, name, their.configure, their.write, their.read)


def _rights(
    federation: str,
    sites: Sequence[str],
    pool: bool,
    declared: bool = False,
    helper: bool = False,
) -> dict[str, Rights]:
    """What each user may do, the sites last. Raises: UserError."""
    from fluffle.broker.admin import permissions
    from fluffle.broker.topology import Topology

    names = Topology(federation)
    if declared and helper:
        raise UserError(
            "--helper does not go with --declared: what a helper needs is declared by its "
            "aggregator, when it first asks"
        )
    rights = {
        "aggregator": permissions.of_aggregator_of_declared(names)
        if declared
        else permissions.of_aggregator(names, helper),
        "evaluator": permissions.of_evaluator(names),
        **({"worker": permissions.of_pool_worker(names)} if pool else {}),
        **({"helper": permissions.of_helper(names)} if helper else {}),
    }
    for name in sites:
        if name in rights:
            raise UserError(f"{name!r} is no name for a site: it is a role's")
        _check_name(name)
    return rights | {name: permissions.of_resident(names, name) for name in sites}


def _check_name(name: str) -> None:
    """Raises: UserError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise UserError(
            f"{name!r} is no name for a site: letters, digits, - and _, not a role's name"
        )


def _keep_passwords(
    folder: Path,
    names: Sequence[str] | Mapping[str, object],
    given: Mapping[str, str] | None = None,
    redraw: Sequence[str] = (),
) -> dict[str, str]:
    """Each user's password, which is in its file from now on. Raises: UserError.

    redraw: whose password shall be another.
    """
    words = {}
    if unknown := [name for name in redraw if name not in names]:
        raise UserError(f"--redraw {unknown[0]}: it is none of {', '.join(names)}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            file = _file_of(folder, name)
            word = (given or {}).get(f"{name.upper()}_PASSWORD") or ""
            if not file.exists() or name in redraw:
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
