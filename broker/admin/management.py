"""RabbitMQ's management API, for users and rights where ``rabbitmqctl`` is out of reach.

https://www.rabbitmq.com/docs/http-api-reference. Everything is told as definitions, so that what
the API is asked for is what a definitions file says, and a second time changes nothing.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

from fluffle.broker.errors import AccessRefused, BrokerUnreachable
from fluffle.schemas.errors import UserError, printable

_TIMEOUT_S = 20.0


class Management:
    """One server's API, asked as one of its administrators."""

    def __init__(self, url: str, password: Path | None = None, ca: Path | None = None) -> None:
        """
        url: http(s)://USER[:PASSWORD]@HOST:PORT, as RabbitMQ's UI has it.
        password: a file that holds the user's.
        ca: whom we believe, instead of the system's authorities.
        Raises: UserError.
        """
        try:
            parts = urlsplit(url)
            host, port, user = parts.hostname, parts.port, unquote(parts.username or "")
        except ValueError:
            host = port = None
            user = ""
        if not host or parts.scheme not in ("http", "https") or not user:
            raise UserError("--api is not like https://USER@HOST:15671 or http://USER@HOST:15672")
        try:
            word = password.read_text().rstrip("\r\n") if password else None
            context = ssl.create_default_context(cafile=ca)
        except (OSError, UnicodeDecodeError, ssl.SSLError) as error:
            raise UserError(f"cannot read {password or ca}: {error}") from None
        word = unquote(parts.password) if parts.password is not None else word
        if word is None:
            raise UserError(f"no password for {user!r}: --api-password-file FILE")
        bracketed = f"[{host}]" if ":" in host else host
        self.where = f"{bracketed}:{port}" if port else bracketed
        self._base = f"{parts.scheme}://{self.where}{parts.path.rstrip('/')}/api"
        self._user = user
        login = base64.b64encode(f"{user}:{word}".encode()).decode()
        self._headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        self._open = build_opener(ProxyHandler({}), HTTPSHandler(context=context)).open

    def take(self, definitions: Mapping[str, Any]) -> None:
        """Make what these definitions say; what is there already becomes as they say.

        Raises: AccessRefused, BrokerUnreachable, UserError.
        """
        self._ask("POST", "definitions", definitions)
        for user in definitions.get("users", ()):
            # Servers before 3.12 take no limits from definitions.
            for name, value in user.get("limits", {}).items():
                self._ask("PUT", f"user-limits/{_part(user['name'])}/{name}", {"value": value})

    def remove_user(self, name: str) -> bool:
        """Put a user out, whose connections end; False where there is none.

        Raises: AccessRefused, BrokerUnreachable, UserError.
        """
        return self._ask("DELETE", f"users/{_part(name)}") is not None

    def read(self, path: str) -> Any:
        """What the API answers; None where there is no such thing. Raises: as ``take``."""
        text = self._ask("GET", path)
        return None if text is None else json.loads(text)

    def _ask(self, method: str, path: str, body: Any = None) -> str | None:
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self._base}/{path}", data, self._headers, method=method)
        try:
            with self._open(request, timeout=_TIMEOUT_S) as answer:
                return str(answer.read().decode())
        except HTTPError as error:
            if error.code == 404 and method != "POST":
                return None
            if error.code in (401, 403):
                raise AccessRefused(
                    f"the management API at {self.where} refused user {self._user!r}: check name "
                    "and password; it has to be tagged administrator"
                ) from None
            said = printable(error.read(500).decode(errors="replace"), 300)
            raise UserError(
                f"the management API at {self.where} answered {error.code} to {method} "
                f"{path.partition('/')[0]}: {said}"
            ) from None
        except (URLError, OSError) as error:
            why = getattr(error, "reason", error)
            raise BrokerUnreachable(
                f"no management API at {self.where} ({why}): rabbitmq-plugins enable "
                "rabbitmq_management, and its port is 15672 (https: 15671)"
            ) from None


def _part(name: str) -> str:
    return quote(name, safe="")
