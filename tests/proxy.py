"""A network that fails on demand: a TCP proxy on loopback between our side and the broker."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.urls import at_port

_CHUNK = 65536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Pair:
    """One connection: the socket towards our side, and the one towards the broker."""

    ours: asyncio.StreamWriter
    theirs: asyncio.StreamWriter
    #: What is sent towards these arrives no more, nor does the end.
    deaf: set[asyncio.StreamWriter] = field(default_factory=set)


class Proxy:
    """Forwards connections, as its methods say. They may be called from any thread."""

    def __init__(self, target: str) -> None:
        """``target`` is the broker's URL."""
        self._target = target
        self._latency_s = 0.0
        self._refuses = False
        self._pairs: set[_Pair] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The broker, by way of this."""
        return at_port(self._target, self.port)

    def delay(self, seconds: float) -> None:
        """Every piece of up to 64 KB takes this long, one after the other; 0 heals."""
        self._call(lambda: setattr(self, "_latency_s", seconds))

    def refuse(self, refuses: bool) -> None:
        """New connections are reset as soon as they are made; False heals."""
        self._call(lambda: setattr(self, "_refuses", refuses))

    def swallow(self) -> None:
        """The present connections are half-open from now on: nothing passes, not even their end.

        As where a router forgets them: each side finds out by its heartbeats. New ones work.
        """

        self._each(lambda pair: pair.deaf.update((pair.ours, pair.theirs)))

    def deafen(self) -> None:
        """From now on nothing that the broker says on the present connections arrives."""
        self._each(lambda pair: pair.deaf.add(pair.ours))

    def part(self) -> None:
        """The present connections end for our side; the broker hears nothing of it."""

        def part(pair: _Pair) -> None:
            pair.deaf.update((pair.ours, pair.theirs))
            pair.ours.close()

        self._each(part)

    def reset(self) -> None:
        """The present connections end for both sides with a TCP reset."""

        def reset(pair: _Pair) -> None:
            _reset(pair.ours)
            _reset(pair.theirs)

        self._each(reset)

    def close(self) -> None:
        """No more of it."""
        self.reset()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._listener.close()
        self._loop.close()

    def _each(self, do: Callable[[_Pair], object]) -> None:
        self._call(lambda: [do(pair) for pair in list(self._pairs)])

    def _call(self, callback: Callable[[], object]) -> None:
        """Do it in the loop, and return when it is done."""
        done = threading.Event()

        def run() -> None:
            callback()
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        serving = asyncio.start_server(self._serve, sock=self._listener)
        server = self._loop.run_until_complete(serving)
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            _reset(writer)
            return
        try:
            their_reader, theirs = await asyncio.open_connection(
                "127.0.0.1", urlsplit(self._target).port
            )
        except OSError:  # the broker is away
            _reset(writer)
            return
        pair = _Pair(writer, theirs)
        self._pairs.add(pair)
        await asyncio.gather(
            self._copy(pair, reader, theirs), self._copy(pair, their_reader, writer)
        )
        self._pairs.discard(pair)
        writer.close()
        theirs.close()

    async def _copy(
        self, pair: _Pair, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await source.read(_CHUNK):
                if self._latency_s:
                    await asyncio.sleep(self._latency_s)
                if sink not in pair.deaf:
                    sink.write(data)
                    await sink.drain()
        if sink not in pair.deaf:
            sink.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        connected: socket.socket = writer.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
