"""Probes of a service beside its metrics: each path answers what it is asked, and no other does.

/metrics   the numbers, for Prometheus
/livez     200: the process answers
/healthz   the same, by its older name
/readyz    200 once it is connected to its broker and at work; else 503 and why, in a line
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from fluffle.schemas import UserError

#: What a service says of itself: nothing once it is ready, else what it waits for.
Waits = Callable[[], str]
_TEXT = (("Content-Type", "text/plain; charset=utf-8"),)


class Readiness:
    """Says whether a service is ready; it is set when the service has its port."""

    def __init__(self) -> None:
        self.waits: Waits = lambda: "starting"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a probe every few seconds would be most of a log."""


@contextmanager
def served(
    registry: CollectorRegistry, port: int, address: str, readiness: Readiness | None = None
) -> Iterator[str]:
    """Serve over HTTP, in threads of its own, until the block ends; the URL of the metrics.

    port: 0 for any that is free. Raises: UserError where it is taken, or not ours.
    """
    application = _application(registry, readiness or Readiness())
    try:
        server = make_server(address, port, application, _Server, _Quiet)
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(
            f"cannot serve metrics at {address}:{port} ({why}): choose another --metrics-port"
        ) from None
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield f"http://{address}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _application(registry: CollectorRegistry, readiness: Readiness) -> WSGIApplication:
    metrics = make_wsgi_app(registry)

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            found: Iterable[bytes] = metrics(environ, start)
            return found
        if path in ("/livez", "/healthz"):
            start("200 OK", list(_TEXT))
            return [b"ok\n"]
        if path == "/readyz":
            waits = readiness.waits()
            start("503 Service Unavailable" if waits else "200 OK", list(_TEXT))
            return [f"{waits or 'ok'}\n".encode()]
        start("404 Not Found", list(_TEXT))
        return [b"here are /metrics, /livez and /readyz\n"]

    return answer
