"""The server of the live page: four files and one stream of events, on loopback alone.

Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): the browser
connects again by itself. Nothing that is asked for changes anything. A page of another site that
had its name point here (DNS rebinding) is refused by its Host header.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from importlib.resources import files

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluffle.live.runs import Runs
from fluffle.schemas import UserError

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")
#: Between two looks; and without news so long, a sign of life is sent.
_EVERY_S, _QUIET_S = 1.0, 10.0
#: How soon a stream notices that the server is to end.
_NOTICE_S = 0.2
#: Pages that are open at the same time; more are told to come later.
_MOST_PAGES = 64
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _Guarded:
    """Adds ``_HEADERS`` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, guarded)


class LiveServer:
    """One page for these runs, on a port of this machine."""

    def __init__(self, runs: Runs, port: int, address: str = ADDRESS) -> None:
        """port: 0 for any that is free. Raises: UserError where it is taken, or not ours.

        address: another than loopback's is for a container whose port this machine alone sees:
        whoever asks for another host's page is refused all the same.
        """
        self._runs = runs
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((address, port))
            self._socket.listen(_MOST_PAGES)
        except OSError as error:
            self._socket.close()
            raise UserError(
                f"cannot serve at {address}:{port} ({error.strerror}): choose another --port"
            ) from None
        self.url = f"http://{ADDRESS}:{self._socket.getsockname()[1]}"
        routes = [Route(path, self._file) for path in _FILES]
        app = Starlette(
            routes=[*routes, Route("/events", self._events)],
            middleware=[
                Middleware(_Guarded),
                Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False),
            ],
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                app, log_config=None, log_level="warning", access_log=False, lifespan="off",
                limit_concurrency=_MOST_PAGES, timeout_graceful_shutdown=3, server_header=False,
            )
        )  # fmt: skip

    def serve(self) -> None:
        """Until Ctrl-C or a signal to end."""
        self._server.run(sockets=[self._socket])

    def end(self) -> None:
        """Let ``serve`` return; from any thread."""
        self._server.should_exit = True

    async def _file(self, request: Request) -> Response:
        name, kind = _FILES[request.url.path]
        return Response((files("fluffle.live") / name).read_bytes(), media_type=kind)

    async def _events(self, request: Request) -> Response:
        stream = self._changes(request.query_params.get("run"))
        return StreamingResponse(stream, media_type="text/event-stream")

    async def _changes(self, label: str | None) -> AsyncIterator[str]:
        """An event for every change, each with everything: whoever missed some has lost nothing."""
        last, sent_at = "", 0.0
        while not self._server.should_exit:
            state = await run_in_threadpool(self._runs.state, label)
            text = json.dumps(state, allow_nan=False)
            if text != last or time.monotonic() - sent_at >= _QUIET_S:
                last, sent_at = text, time.monotonic()
                # The browser's clock may be another: ages are told from ours.
                yield f"data: {json.dumps({'now': time.time()})[:-1]}, {text[1:]}\n\n"
            until = time.monotonic() + _EVERY_S
            while time.monotonic() < until and not self._server.should_exit:
                await asyncio.sleep(_NOTICE_S)
