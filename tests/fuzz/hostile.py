"""Hostile messages: everything that somebody with a worker's rights may send, made from a seed.

All of them must be rejected, each for one of its reasons; what has been changed at random is made
from an update of another run, so that no change can make it good.
"""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
from pika import BasicProperties
from pika.data import encode_short_string

from fluffle.schemas import (
    Assignment,
    ClientFailed,
    ClientUpdate,
    Evaluation,
    Event,
    GlobalModel,
    Message,
    Run,
    encode,
)
from fluffle.schemas.codec import SCHEMA_VERSION
from fluffle.schemas.messages import assignment_id

ANY = "application/msgpack"


class RawProperties(BasicProperties):
    """Properties whose headers are these bytes, as no client library would write them."""

    def __init__(self, table: bytes) -> None:
        super().__init__()
        self.table = table

    def encode(self) -> list[bytes]:
        content_type: list[bytes] = []
        encode_short_string(content_type, ANY)
        flags = BasicProperties.FLAG_CONTENT_TYPE | BasicProperties.FLAG_HEADERS
        size = struct.pack(">I", len(self.table))
        return [struct.pack(">H", flags), *content_type, size, self.table]


@dataclass(frozen=True)
class Hostile:
    """One message, and why it may be rejected."""

    body: bytes
    reasons: frozenset[str]
    properties: BasicProperties = field(default_factory=BasicProperties)


class Attacker:
    """Knows what a worker knows: the newest model, and so the run, the version and all shapes."""

    def __init__(self, model: GlobalModel, seed: int) -> None:
        self.model = model
        self._random = random.Random(seed)
        self._turn = 10**9
        self._makers: list[Callable[[], Iterator[Hostile]]] = [
            self._garbage,
            self._damaged,
            self._schemas,
            self._bombs,
            self._values,
            self._shapes,
            self._runs,
            self._forged,
            self._kinds,
            self._properties,
            self._large,
        ]

    def messages(self, count: int) -> Iterator[Hostile]:
        """Hostile messages, with one in fifty sent twice."""
        sent = 0
        while True:
            for one in self._random.choice(self._makers)():
                for _ in range(2 if self._random.random() < 0.02 else 1):
                    if sent == count:
                        return
                    yield one
                    sent += 1

    def good(self, **changes: Any) -> ClientUpdate:
        """An update that would be counted; a pool cannot know who was asked for it."""
        self._turn += 1
        run = self.model.run
        told = {
            "run": run,
            "update_id": assignment_id(run.run_id, self._turn, "0"),
            "client": "0",
            "turn": self._turn,
            "base_version": self.model.version,
            "worker": "attacker",
            "sends": self.model.plan.sends,
            "examples": 10,
            "tensors": {k: np.zeros_like(a) for k, a in self.model.tensors.items()},
        }
        return ClientUpdate.model_validate({**told, **changes})

    # ---- makers: each gives a few messages of one kind

    def _garbage(self) -> Iterator[Hostile]:
        yield said(b"", "undecodable")
        size = self._random.choice((1, 2, 7, 100, 10_000))
        yield said(self._random.randbytes(size), "undecodable")
        yield said(b"\x80\x04\x95" + self._random.randbytes(20) + b".", "undecodable")

    def _damaged(self) -> Iterator[Hostile]:
        body = bytearray(encode(self._elsewhere()))
        yield said(bytes(body[: self._random.randrange(len(body))]), "undecodable")
        for _ in range(self._random.choice((1, 1, 4))):
            # The head, most of the time: a flipped weight is a good update of another run.
            within = self._random.choice((min(400, len(body)), len(body)))
            body[self._random.randrange(within)] ^= 1 << self._random.randrange(8)
        yield said(bytes(body), "undecodable", "unknown_run", "wrong_type")
        cut = self._random.randrange(len(body))
        yield said(bytes(body[cut:] + body[:cut]), "undecodable", "unknown_run", "wrong_type")
        yield said(bytes(body) + self._random.randbytes(3), "undecodable")

    def _schemas(self) -> Iterator[Hostile]:
        told = self._head()
        yield said(msgpack.packb({**told, "schema": SCHEMA_VERSION + 1}), "undecodable")
        yield said(msgpack.packb({**told, "type": "exec"}), "undecodable")
        yield said(msgpack.packb({**told, "__reduce__": "os.system"}), "undecodable")
        lacking = {k: v for k, v in told.items() if k != self._random.choice(list(told))}
        yield said(msgpack.packb(lacking), "undecodable")
        typed = {**told, self._random.choice(list(told)): [self._random.random()] * 3}
        yield said(msgpack.packb(typed), "undecodable")

    def _bombs(self) -> Iterator[Hostile]:
        big = struct.pack(">I", 10**9 + self._random.randrange(1000))
        for value in (
            *(b"\xdd" + big, b"\xdf" + big, b"\xdb" + big, b"\xc6" + big),
            self._random.choice((b"\x91", b"\x81\xa0")) * self._random.randrange(500, 50_000),
            b"\xdc\x00\x40" + 64 * (b"\xdc\x00\x40" + 64 * b"\x90"),
        ):
            yield said(b"\x82" + msgpack.packb("schema") + b"\x01\xa1x" + value, "undecodable")
        for shape in ([10**9], [2**31] * 8, [0, *[2**31] * 7], [-1], [1.5], [10**9 + 1, 4]):
            table = [["trainable/0", "float32", shape]]
            yield said(raw_update(self._head(), table, b"x" * 16), "undecodable")

    def _values(self) -> Iterator[Hostile]:
        for value in (np.nan, np.inf, -np.inf, 1e31):
            tensors = {k: a.copy() for k, a in self.good().tensors.items()}
            array = self._random.choice([a for a in tensors.values() if a.dtype.kind == "f"])
            array.flat[self._random.randrange(array.size)] = value
            yield self._message(self.good(tensors=tensors), "not_finite")
        yield self._message(self.good(examples=0), "no_examples")
        yield self._message(self.good(base_version=2**53), "unknown_version")
        head = {**self._head(), "metrics": {"loss": float("nan")}}
        yield said(raw_update(head, [], b""), "undecodable")

    def _shapes(self) -> Iterator[Hostile]:
        tensors = dict(self.good().tensors)
        name = self._random.choice(list(tensors))
        array = tensors[name]
        yield self._message(self.good(tensors={}), "wrong_shape")
        for other in (
            {**tensors, name: array[..., :-1]},
            {**tensors, name: array.reshape(-1, 1, 1)},
            {**tensors, name: array.astype(np.float64)},
            {**tensors, "trainable/999": array},
            {k: a for k, a in tensors.items() if k != name},
        ):
            yield self._message(self.good(tensors=other), "wrong_shape")

    def _runs(self) -> Iterator[Hostile]:
        yield self._message(self._elsewhere(), "unknown_run")
        run = Run(run_id=f"other-{self._random.random()}", run_started=2**53, epoch=2**53)
        yield self._message(self.good(run=run), "unknown_run")
        measured = {"version": 0, "worker": "w", "metrics": {"accuracy": 1.0}, "examples": 1}
        yield self._message(Evaluation(run=run, **measured), "unknown_run")
        late = {**measured, "version": 10**6 + self._random.randrange(10**6)}
        yield self._message(Evaluation(run=self.model.run, **late), "unknown_version")

    def _forged(self) -> Iterator[Hostile]:
        run = self.model.run
        for client in ("1", "00", "999999999"):
            changed = self.good(client=client)
            yield self._message(changed, "forged")
        yield self._message(self.good(turn=self._random.randrange(1000)), "forged")
        for client in ("hospital-7", "0x1", "root"):
            yield self._message(self.good(client=client), "not_allowed")
        failed = {"client": "1", "base_version": 0, "worker": "w", "reason": "\x1b[2J[/red]\n" * 9}
        wrong = f"{run.run_id}:{self._random.randrange(10**9)}:0"
        yield self._message(
            ClientFailed(run=run, update_id=wrong, turn=self._random.randrange(99), **failed),
            "forged",
        )

    def _kinds(self) -> Iterator[Hostile]:
        run, number = self.model.run, self._random.randrange(10**9)
        turn = {"client": "0", "turn": number, "version": number}
        for message in (
            Event(run=run, kind="joined", worker=f"w{number}"),
            Assignment(run=run, assignment_id=f"a{number}", **turn),
            self.model.model_copy(update={"version": number}),
        ):
            yield self._message(message, "wrong_type")
            yield said(encode(message), "wrong_type", kind="client-update")
        body = encode(self.good())
        yield said(body, "wrong_type", kind=self._random.choice(("event", "", "global-model")))
        other = "weights" if self.model.plan.sends == "delta" else "delta"
        yield self._message(self.good(sends=other), "wrong_kind")
        yield self._message(self.good(sends="initial"), "wrong_kind")

    def _properties(self) -> Iterator[Hostile]:
        body, wrong = encode(self.good()), frozenset({"wrong_type"})
        kind = {"type": "client-update"}
        yield Hostile(body, wrong, BasicProperties(content_type="application/json", **kind))
        packed = gzip.compress(encode(self.good()))
        encoded = BasicProperties(content_type=ANY, content_encoding="gzip", **kind)
        yield Hostile(packed, frozenset({"undecodable"}), encoded)
        yield Hostile(encode(self.good()), wrong, encoded)
        yield Hostile(encode(self.good()), wrong)  # no properties at all
        yield Hostile(encode(self.good()), wrong, RawProperties(nested_lists(1200)))
        date = b"\x01h" + b"T" + struct.pack(">Q", 2**63)
        yield Hostile(encode(self.good()), wrong, RawProperties(date))
        strange: dict[str, Any] = self._random.choice(
            (
                {"h": "x" * 100_000},
                {str(i): i for i in range(3_000)},
                {"x-delivery-count": 1000, "x-death": [{"count": 10**9}]},
                {"run_id": [], "version": {"a": None}, "reason": "none", "epoch": -(2**63)},
            )
        )
        headers = BasicProperties(content_type=ANY, headers=strange, message_id="\x1b[2J", **kind)
        yield Hostile(encode(self._elsewhere()), frozenset({"unknown_run"}), headers)

    def _large(self) -> Iterator[Hostile]:
        if self._random.random() < 0.1:
            size = self._random.randrange(5, 9) * 1024**2
            yield said(self._random.randbytes(64) + bytes(size), "too_large")

    # ---- helpers

    def _elsewhere(self) -> ClientUpdate:
        run = Run(run_id=f"elsewhere-{self._random.random()}", run_started=1, epoch=1)
        return self.good(run=run, update_id=f"{run.run_id}:1:0")

    def _head(self) -> dict[str, Any]:
        told = self.good().model_dump(exclude={"tensors"})
        return {"schema": SCHEMA_VERSION, "type": "client-update", **told}

    def _message(self, message: Message, *reasons: str) -> Hostile:
        return said(encode(message), *reasons, kind=message.type)


def said(body: bytes, *reasons: str, kind: str = "client-update") -> Hostile:
    """A message with the properties that ours have."""
    properties = BasicProperties(content_type=ANY, type=kind, message_id="hostile")
    return Hostile(body, frozenset(reasons), properties)


def raw_update(head: dict[str, Any], table: Any, data: bytes) -> bytes:
    """An update with this table and data, as our own encoder would never write it."""
    told = {**head, "tensors": table, "data": b""}
    return msgpack.packb(told)[:-2] + b"\xc6" + struct.pack(">I", len(data)) + data


def nested_lists(depth: int) -> bytes:
    """A table of one header that is lists in lists."""
    value = b""
    for _ in range(depth):
        value = b"A" + struct.pack(">I", len(value)) + value
    return b"\x01h" + value
