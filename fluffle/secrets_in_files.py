"""The options that keep a broker's secrets in files: certificates, and a password."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Optional, get_type_hints

import typer

#: Flag -> what its file holds. The variable is FLUFFLE_ and the flag's name.
_FILES = {
    "--tls-ca": "The certificate of the authority that signed RabbitMQ's (PEM).",
    "--tls-cert": "Our own certificate (PEM).",
    "--tls-key": "Its key (PEM, unencrypted).",
    "--password-file": "The password of the user in the broker's URL.",
}


def secure(command: Callable[..., None]) -> Callable[..., None]:
    """A command with ``broker`` takes these options as well, and gets a URL that has it all."""
    options = {flag.strip("-").replace("-", "_"): flag for flag in _FILES}

    @wraps(command)
    def complete(**given: Any) -> None:
        files = [given.pop(name) for name in options]
        if given["broker"].startswith("amqp"):  # not embedded, local or none
            from fluffle.broker.rabbitmq.address import completed

            given["broker"] = completed(given["broker"], *files)
        command(**given)

    hints = get_type_hints(command, include_extras=True)
    for name, flag in options.items():
        option = typer.Option(flag, envvar=f"FLUFFLE_{name.upper()}", help=_FILES[flag])
        hints[name] = Annotated[Optional[Path], option]  # noqa: UP045 typer reads it
    own = inspect.signature(command).parameters.values()
    added = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in options]
    complete.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [one.replace(annotation=hints[one.name]) for one in (*own, *added)]
    )
    complete.__annotations__ = hints
    return complete
