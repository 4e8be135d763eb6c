"""The proxy fails as it says: else the chaos would be milder than its report."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.proxy import Proxy

#: Nothing that should come takes this long.
PATIENCE_S = 20.0
#: What should not come has not come after this.
A_WHILE_S = 0.3


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Before a server that sends back what it is sent."""
    listener = socket.create_server(("127.0.0.1", 0))

    def echo(connected: socket.socket) -> None:
        with contextlib.suppress(OSError), connected:
            while data := connected.recv(65536):
                connected.sendall(data)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connected, _ = listener.accept()
                threading.Thread(target=echo, args=(connected,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    proxy = Proxy(f"amqp://me:word@127.0.0.1:{listener.getsockname()[1]}")
    yield proxy
    proxy.close()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@contextlib.contextmanager
def connected(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE_S) as one:
        yield one


def echo(one: socket.socket, text: bytes) -> bytes:
    one.sendall(text)
    return one.recv(65536)


def test_it_forwards_and_passes_the_end_on(proxy: Proxy) -> None:
    with connected(proxy) as one:
        assert echo(one, b"there and back") == b"there and back"
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b""


def test_latency_delays_each_way(proxy: Proxy) -> None:
    with connected(proxy) as one:
        proxy.delay(0.2)
        before = time.monotonic()
        assert echo(one, b"slow") == b"slow"
        assert time.monotonic() - before >= 0.4


def test_half_open_connections_swallow_everything_and_new_ones_work(proxy: Proxy) -> None:
    with connected(proxy) as old:
        assert echo(old, b"x") == b"x"
        proxy.swallow()
        old.sendall(b"lost")
        old.settimeout(A_WHILE_S)
        with pytest.raises(TimeoutError):
            old.recv(1)
        with connected(proxy) as new:
            assert echo(new, b"new") == b"new"


def test_deaf_connections_hear_nothing(proxy: Proxy) -> None:
    with connected(proxy) as one:
        assert echo(one, b"x") == b"x"
        proxy.deafen()
        one.sendall(b"heard")
        one.settimeout(A_WHILE_S)
        with pytest.raises(TimeoutError):
            one.recv(1)


def test_parted_connections_end_here_and_new_ones_work(proxy: Proxy) -> None:
    with connected(proxy) as old:
        assert echo(old, b"x") == b"x"
        proxy.part()
        assert old.recv(1) == b""
        with connected(proxy) as new:
            assert echo(new, b"new") == b"new"


def test_a_reset_ends_connections_with_an_error(proxy: Proxy) -> None:
    with connected(proxy) as one:
        assert echo(one, b"x") == b"x"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            one.recv(1)


def test_refused_connections_are_of_no_use_until_it_heals(proxy: Proxy) -> None:
    proxy.refuse(True)
    with pytest.raises(ConnectionResetError), connected(proxy) as one:
        one.recv(1)
    proxy.refuse(False)
    with connected(proxy) as one:
        assert echo(one, b"healed") == b"healed"
