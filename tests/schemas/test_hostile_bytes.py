"""Whatever the bytes, the answer is a message or DecodeError, and memory stays small."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluffle.schemas import DecodeError, Message, decode
from fluffle.schemas.codec import MAX_MESSAGE_BYTES

VALID = [path.read_bytes() for path in sorted((Path(__file__).parent / "golden").glob("*.bin"))]
EXAMPLES = 5_000 if os.environ.get("CI") else 500
RUN = {"run_id": "r", "run_started": 0, "epoch": 0}
EVENT = {"schema": 1, "type": "event", "run": RUN, "kind": "joined", "worker": "w"}
UPDATE = {
    **{"schema": 1, "type": "client-update", "run": RUN, "update_id": "u", "client": "c"},
    **{"turn": 0, "base_version": 0, "worker": "w", "sends": "delta", "examples": 1},
}

#: What decoding may allocate for the head, whatever it is: 64 KiB of empty lists.
HEAD_ALLOWANCE = 8 * 1024**2


def refuse(body: bytes) -> str:
    """Decode within the bound on memory; the text of the DecodeError."""
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError) as caught:
            decode(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= HEAD_ALLOWANCE
    assert "\n" not in str(caught.value)
    return str(caught.value)


def update(table: Any, data: bytes, **fields: Any) -> bytes:
    """An update with this table and data, as our own encoder would never write it."""
    head = msgpack.packb({**UPDATE, **fields, "tensors": table})
    count = len(UPDATE) + len(fields.keys() - UPDATE.keys()) + 2
    assert head[0] == 0x80 | (count - 1)
    key = msgpack.packb("data")
    return b"".join(
        [bytes([0x80 | count]), head[1:], key, b"\xc6", struct.pack(">I", len(data)), data]
    )


def test_the_corpus_starts_from_bytes_that_are_good() -> None:
    assert isinstance(decode(msgpack.packb(EVENT)), Message)
    assert isinstance(decode(update([["trainable/0", "uint8", [2]]], b"ab")), Message)


def nested(opening: bytes, depth: int) -> bytes:
    """An event in which a field is ``depth`` containers deep."""
    return b"\x86" + msgpack.packb(EVENT)[1:] + msgpack.packb("client") + opening * depth + b"\xc0"


def with_field(value: bytes) -> bytes:
    """An event whose field ``client`` is this raw msgpack."""
    return b"\x86" + msgpack.packb(EVENT)[1:] + msgpack.packb("client") + value


BIG = 10**9
CORPUS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "not msgpack": lambda: b"\xc1" * 100,
    "pickle": lambda: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94",
    "no map": lambda: msgpack.packb([EVENT]),
    "a number": lambda: b"\x01",
    "map of a billion entries": lambda: b"\xdf" + struct.pack(">I", BIG),
    "65 keys": lambda: msgpack.packb({str(i): 0 for i in range(65)}),
    "keys that are numbers": lambda: msgpack.packb({1: 2}),
    "keys that are bytes": lambda: msgpack.packb({b"schema": 1}),
    "a key twice": lambda: b"\x82\xa6schema\x01\xa6schema\x01",
    "a key twice further in": lambda: with_field(b"\x82\xa1a\x01\xa1a\x01"),
    "the table twice": lambda: b"\x83" + 2 * (msgpack.packb("tensors") + b"\x90") + b"\xa4data\xc6",
    "other schema": lambda: msgpack.packb({**EVENT, "schema": 2}),
    "schema true": lambda: msgpack.packb({**EVENT, "schema": True}),
    "no schema": lambda: msgpack.packb({k: v for k, v in EVENT.items() if k != "schema"}),
    "unknown type": lambda: msgpack.packb({**EVENT, "type": "exec"}),
    "type is a list": lambda: msgpack.packb({**EVENT, "type": ["event"]}),
    "unknown field": lambda: msgpack.packb({**EVENT, "code": "import os"}),
    "missing field": lambda: msgpack.packb({k: v for k, v in EVENT.items() if k != "worker"}),
    "number as text": lambda: msgpack.packb({**EVENT, "slots": "2"}),
    "negative count": lambda: msgpack.packb({**EVENT, "slots": -1}),
    "count of 2^64": lambda: msgpack.packb({**EVENT, "slots": 2**64 - 1}),
    "infinite float": lambda: msgpack.packb({**EVENT, "peak_rss_mb": float("inf")}),
    "name with a slash": lambda: msgpack.packb({**EVENT, "worker": "../../x"}),
    "name with a newline": lambda: msgpack.packb({**EVENT, "worker": "w\n"}),
    "text that is not UTF-8": lambda: with_field(b"\xa2\xff\xfe"),
    "ext type": lambda: with_field(b"\xd4\x01\x00"),
    "timestamp": lambda: with_field(b"\xd6\xff\x00\x00\x00\x00"),
    "text of 4 GB": lambda: with_field(b"\xdb\xff\xff\xff\xff"),
    "bytes of 4 GB": lambda: with_field(b"\xc6\xff\xff\xff\xff"),
    "ext of 4 GB": lambda: with_field(b"\xc9\xff\xff\xff\xff\x01"),
    "list of a billion": lambda: with_field(b"\xdd" + struct.pack(">I", BIG)),
    "map of a billion": lambda: with_field(b"\xdf" + struct.pack(">I", BIG)),
    "lists in lists": lambda: nested(b"\x91", 100_000),
    "maps in maps": lambda: nested(b"\x81\xa0", 100_000),
    "long lists in long lists": lambda: nested(b"\xdc\x4e\x20", 1000),
    "a megabyte of empty lists": lambda: with_field(
        b"\xdd"
        + struct.pack(">I", 64)
        + 64 * (b"\xdc" + struct.pack(">H", 20_000) + b"\x90" * 20_000)
    ),
    "wide and deep": lambda: with_field(
        b"\xdc\x00\x40" + 64 * (b"\xdc\x00\x40" + 64 * (b"\xdc\x00\x0f" + 15 * b"\x90"))
    ),
    "many medium fields": lambda: (
        b"\xde\x00\x40"
        + b"".join(
            msgpack.packb(f"k{i}") + b"\xdc\x00\x40" + 64 * (b"\xdc\x00\x40" + 64 * b"\x90")
            for i in range(64)
        )
    ),
    "extra bytes": lambda: msgpack.packb(EVENT) + b"\0",
    "cut short": lambda: msgpack.packb(EVENT)[:-1],
    "tensors on an event": lambda: (
        b"\x88" + msgpack.packb(EVENT)[1:] + b"\xa7tensors\x90\xa3pad\xc4\x00\xa4data\xc6\0\0\0\0"
    ),
    "a table without data": lambda: b"\x86" + msgpack.packb(EVENT)[1:] + b"\xa7tensors\x90",
    "data without a table": lambda: b"\x86" + msgpack.packb(EVENT)[1:] + b"\xa4data\xc6\0\0\0\0",
    "an update without tensors": lambda: msgpack.packb(UPDATE),
    "data not last": lambda: (
        b"\x87" + b"\xa7tensors\x90\xa4data\xc4\x00" + msgpack.packb(EVENT)[1:]
    ),
    "data of another kind": lambda: update([], b"")[:-5] + b"\xc4\x00",
    "NaN in metrics": lambda: update([], b"", metrics={"loss": float("nan")}),
    "metrics of 65 entries": lambda: update([], b"", metrics={str(i): 0.0 for i in range(65)}),
    "a metric's name of 65": lambda: update([], b"", metrics={"x" * 65: 0.0}),
    "negative seconds": lambda: update([], b"", train_s=-1.0),
    "a billion elements": lambda: update([["trainable/0", "float64", [BIG]]], b"x" * 16),
    "a shape that overflows": lambda: update([["trainable/0", "uint8", [2**31] * 8]], b""),
    "an empty giant": lambda: update([["trainable/0", "uint8", [0, *[2**31] * 7]]], b""),
    "a dimension below zero": lambda: update([["trainable/0", "uint8", [-1]]], b"a"),
    "a dimension that is true": lambda: update([["trainable/0", "uint8", [True]]], b"a"),
    "a dimension with a fraction": lambda: update([["trainable/0", "uint8", [1.0]]], b"a"),
    "nine dimensions": lambda: update([["trainable/0", "uint8", [1] * 9]], b"a"),
    "object dtype": lambda: update([["trainable/0", "O", [1]]], b"x" * 8),
    "text dtype": lambda: update([["trainable/0", "<U4", [1]]], b"x" * 16),
    "a name of another form": lambda: update([["trainable", "uint8", [1]]], b"a"),
    "a name of a megabyte": lambda: update([["a/" + "0" * 2**20, "uint8", [1]]], b"a"),
    "a tensor twice": lambda: update([["trainable/0", "uint8", [1]]] * 2, b"a" * 9),
    "an entry of two": lambda: update([["trainable/0", "uint8"]], b"a"),
    "an entry that is a map": lambda: update([{"name": "trainable/0"}], b"a"),
    "a table that is a map": lambda: update({"trainable/0": ["uint8", [1]]}, b"a"),
    "a table that is nil": lambda: update(None, b""),
    "a shape that is text": lambda: update([["trainable/0", "uint8", "1"]], b"a"),
    "20,001 tensors": lambda: update([[f"a/{i}", "uint8", [0]] for i in range(20_001)], b""),
    "a bool of two": lambda: update([["trainable/0", "bool", [2]]], b"\x01\x02"),
    "data too short": lambda: update([["trainable/0", "float32", [2]]], b"x" * 7),
    "data too long": lambda: update([["trainable/0", "float32", [2]]], b"x" * 9),
    "data says it is longer": lambda: update([["trainable/0", "uint8", [9]]], b"x" * 9)[:-1],
    "bytes after data": lambda: update([["trainable/0", "uint8", [9]]], b"x" * 9) + b"\0",
}


@pytest.mark.parametrize("name", sorted(CORPUS))
def test_hostile_bytes_are_refused_within_a_bound_on_memory(name: str) -> None:
    refuse(CORPUS[name]())


def test_a_message_larger_than_the_broker_takes_is_refused_by_its_length_alone() -> None:
    # bytes(n) of zeros is not touched by anybody, so it costs address space only.
    assert "more than" in refuse(bytes(MAX_MESSAGE_BYTES + 1))


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """Good bytes, truncated, flipped, overwritten, grown and spliced with others."""
    body = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        how = draw(st.sampled_from(["truncate", "flip", "insert", "delete", "splice", "set"]))
        if how == "truncate":
            del body[at:]
        elif how == "flip" and at < len(body):
            body[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "set" and at < len(body):
            body[at] = draw(st.sampled_from([0x00, 0x80, 0x90, 0xC0, 0xC6, 0xDB, 0xDD, 0xDF, 0xFF]))
        elif how == "insert":
            body[at:at] = draw(st.binary(min_size=1, max_size=12))
        elif how == "delete":
            del body[at : at + draw(st.integers(1, 8))]
        else:
            other = draw(st.sampled_from(VALID))
            cut = draw(st.integers(0, len(other)))
            body[at:] = other[cut:]
    return bytes(body)


def total(body: bytes) -> None:
    try:
        outcome: object = decode(body)
    except DecodeError as error:
        outcome = error
    assert isinstance(outcome, Message) or str(outcome).isprintable()


@given(mutations())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mutated_bytes_give_a_message_or_a_decode_error_and_nothing_else(body: bytes) -> None:
    total(body)


@given(st.binary(max_size=200))
@settings(max_examples=EXAMPLES, deadline=None)
def test_random_bytes_give_a_message_or_a_decode_error_and_nothing_else(body: bytes) -> None:
    total(body)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(VALID), st.data())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_good_structure_with_any_values_gives_a_message_or_a_decode_error(
    body: bytes, data: st.DataObject
) -> None:
    # Given a good message with some of its fields replaced by anything that msgpack can say
    told = msgpack.unpackb(body)
    for key in data.draw(st.lists(st.sampled_from(sorted(told)), max_size=3)):
        inner = told[key]
        if isinstance(inner, dict) and inner and data.draw(st.booleans()):
            inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(values)
        else:
            told[key] = data.draw(values)
    total(msgpack.packb(told))
