"""A trace of an aggregator's system calls (strace): what it did to its folder, and what it told.

Only the run folder and the broker's connections are followed. What leaves counts from when its call
began, what is made durable from when it ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pika.frame
from pika.spec import Basic

#: What strace is asked for.
COMMAND = (
    *("strace", "-f", "-xx", "-s", "4000000", "-e"),
    "trace=openat,close,write,pwrite64,ftruncate,fsync,fdatasync,rename,unlink,mkdir,sendto,recvfrom",
    "-o",
)
_CALL = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(frozen=True)
class Written:
    """Bytes at an offset of an open file."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Cut:
    """An open file has a new length."""

    file: int
    length: int


@dataclass(frozen=True)
class Synced:
    """A file's data, or a folder's names, are durable."""

    path: Path
    file: int | None


@dataclass(frozen=True)
class Made:
    """A name of a file, or of a folder (None)."""

    path: Path
    file: int | None


@dataclass(frozen=True)
class Renamed:
    """A file has another name, and whatever had that name has none."""

    path: Path
    to: Path


@dataclass(frozen=True)
class Removed:
    """A name is gone."""

    path: Path


@dataclass(frozen=True)
class Told:
    """Updates that the broker heard were taken, or a version that it was given."""

    acked: tuple[str, ...] = ()
    version: int | None = None


Event = Written | Cut | Synced | Made | Renamed | Removed | Told


@dataclass
class _Connection:
    """One connection of AMQP: frames out of bytes, both ways."""

    model_exchange: str
    sent: bytes = b""
    received: bytes = b""
    #: (channel, delivery tag) -> id of the update.
    updates: dict[tuple[int, int], str] = field(default_factory=dict)
    _tag: dict[int, int] = field(default_factory=dict)
    _publishes: dict[int, str] = field(default_factory=dict)

    def receive(self, data: bytes) -> None:
        frames, self.received = _frames(self.received + data)
        for one in frames:
            if isinstance(one, pika.frame.Method) and isinstance(one.method, Basic.Deliver):
                self._tag[one.channel_number] = one.method.delivery_tag
            if isinstance(one, pika.frame.Header) and one.properties.type == "client-update":
                channel = one.channel_number
                self.updates[channel, self._tag[channel]] = one.properties.message_id

    def send(self, data: bytes) -> Iterator[Told]:
        frames, self.sent = _frames(self.sent + data)
        for one in frames:
            channel = getattr(one, "channel_number", 0)
            if isinstance(one, pika.frame.Method) and isinstance(one.method, Basic.Ack):
                last, multiple = one.method.delivery_tag, one.method.multiple
                those = [
                    (c, tag)
                    for c, tag in self.updates
                    if c == channel and (tag <= last if multiple else tag == last)
                ]
                if those:
                    yield Told(acked=tuple(self.updates.pop(key) for key in those))
            elif isinstance(one, pika.frame.Method) and isinstance(one.method, Basic.Publish):
                self._publishes[channel] = one.method.exchange
            elif isinstance(one, pika.frame.Header):
                headers = one.properties.headers or {}
                if self._publishes[channel] == self.model_exchange and "version" in headers:
                    yield Told(version=int(headers["version"]))


def _frames(data: bytes) -> tuple[list[object], bytes]:
    found = []
    while True:
        used, frame = pika.frame.decode_frame(data)
        if frame is None:
            return found, data
        found.append(frame)
        data = data[used:]


def events(log: Path, folder: Path, model_exchange: str) -> list[Event]:
    """What the traced process did, in order; ``folder`` is absolute."""
    return list(_Reader(folder, model_exchange).read(log))


class _Reader:
    def __init__(self, folder: Path, model_exchange: str) -> None:
        self._folder = folder
        self._exchange = model_exchange
        self._files = 0
        #: Open in the folder: descriptor -> its path, its file (None: a folder), and where it is.
        self._open: dict[int, tuple[Path, int | None, int]] = {}
        self._names: dict[Path, int | None] = {}
        self._connections: dict[int, _Connection] = {}

    def read(self, log: Path) -> Iterator[Event]:
        begun: dict[str, str] = {}
        for line in log.read_text().splitlines():
            pid, _, call = line.partition(" ")
            call = call.strip()
            if call.endswith("<unfinished ...>"):
                begun[pid] = call.removesuffix("<unfinished ...>").strip()
                # What leaves may be there before its call has come back
                if call.startswith("sendto("):
                    begun[pid] = ""
                    yield from self._sendto(call, None)
                continue
            if call.startswith("<... "):
                before = begun.pop(pid, "")
                if not before:
                    continue
                call = before + call.partition(" resumed>")[2]
            match = _CALL.match(f"{pid} {call}")
            if match is None:
                continue
            name, arguments, result = match[2], match[3], int(match[4])
            if result < 0:
                continue
            if name == "sendto":
                yield from self._sendto(call, result)
            else:
                yield from getattr(self, f"_{name}")(arguments, result)

    def _path(self, arguments: str, which: int = 0) -> Path | None:
        texts = [bytes.fromhex(m.replace("\\x", "")) for m in _STRING.findall(arguments)]
        path = Path(texts[which].decode())
        return path if path.is_relative_to(self._folder) else None

    def _openat(self, arguments: str, fd: int) -> Iterator[Event]:
        self._connections.pop(fd, None)
        path = self._path(arguments)
        if path is None or path.name.endswith("-shm"):
            self._open.pop(fd, None)  # shared memory is made again from the WAL
            return
        if path not in self._names:
            if "O_CREAT" not in arguments:
                return
            self._files += 1
            self._names[path] = self._files
            yield Made(path, self._files)
        file = self._names[path]
        self._open[fd] = (path, file, 0)
        if "O_TRUNC" in arguments and file is not None:
            yield Cut(file, 0)

    def _close(self, arguments: str, result: int) -> Iterator[Event]:
        fd = _fd(arguments)
        self._open.pop(fd, None)
        self._connections.pop(fd, None)
        yield from ()

    def _write(self, arguments: str, count: int) -> Iterator[Event]:
        if (opened := self._open.get(_fd(arguments))) is not None:
            path, file, at = opened
            assert file is not None
            self._open[_fd(arguments)] = (path, file, at + count)
            yield Written(file, at, _data(arguments)[:count])

    def _pwrite64(self, arguments: str, count: int) -> Iterator[Event]:
        if (opened := self._open.get(_fd(arguments))) is not None:
            assert opened[1] is not None
            offset = int(arguments.rpartition(", ")[2])
            yield Written(opened[1], offset, _data(arguments)[:count])

    def _ftruncate(self, arguments: str, result: int) -> Iterator[Event]:
        if (opened := self._open.get(_fd(arguments))) is not None:
            assert opened[1] is not None
            yield Cut(opened[1], int(arguments.rpartition(", ")[2]))

    def _fsync(self, arguments: str, result: int) -> Iterator[Event]:
        if (opened := self._open.get(_fd(arguments))) is not None:
            yield Synced(opened[0], opened[1])

    _fdatasync = _fsync

    def _rename(self, arguments: str, result: int) -> Iterator[Event]:
        path, to = self._path(arguments), self._path(arguments, 1)
        if path is not None and to is not None:
            self._names[to] = self._names.pop(path)
            yield Renamed(path, to)

    def _unlink(self, arguments: str, result: int) -> Iterator[Event]:
        path = self._path(arguments)
        if path is not None and self._names.pop(path, None) is not None:
            yield Removed(path)

    def _mkdir(self, arguments: str, result: int) -> Iterator[Event]:
        if (path := self._path(arguments)) is not None:
            self._names[path] = None
            yield Made(path, None)

    def _sendto(self, call: str, count: int | None) -> Iterator[Event]:
        yield from self._connection(call).send(_data(call)[:count])

    def _recvfrom(self, arguments: str, count: int) -> Iterator[Event]:
        self._connection(arguments).receive(_data(arguments)[:count])
        yield from ()

    def _connection(self, arguments: str) -> _Connection:
        fd = _fd(arguments.removeprefix("sendto("))
        return self._connections.setdefault(fd, _Connection(self._exchange))


def _fd(arguments: str) -> int:
    match = re.match(r"\d+", arguments)
    assert match is not None, arguments[:80]
    return int(match[0])


def _data(arguments: str) -> bytes:
    match = _STRING.search(arguments)
    return b"" if match is None else bytes.fromhex(match[1].replace("\\x", ""))
