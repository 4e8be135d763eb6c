"""The bytes of schema 1 never change: ``golden/*.bin``, written by ``golden/make.py``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from fluffle.schemas import Message, decode, encode
from fluffle.schemas.messages import TYPES

GOLDEN = Path(__file__).parent / "golden"


def _make() -> Any:
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MESSAGES: dict[str, Message] = _make().MESSAGES
each_message = pytest.mark.parametrize("name", sorted(MESSAGES))


def test_every_type_has_golden_bytes_and_every_file_is_tested() -> None:
    assert {message.type for message in MESSAGES.values()} == set(TYPES)
    assert {path.stem for path in GOLDEN.glob("*.bin")} == set(MESSAGES)


@each_message
def test_a_message_still_has_the_bytes_of_schema_1(name: str) -> None:
    assert encode(MESSAGES[name]) == (GOLDEN / f"{name}.bin").read_bytes()


@each_message
def test_bytes_of_schema_1_are_still_understood(name: str) -> None:
    expected = MESSAGES[name]
    got = decode((GOLDEN / f"{name}.bin").read_bytes())
    assert type(got) is type(expected)
    without = {"tensors"}
    assert got.model_dump(exclude=without) == expected.model_dump(exclude=without)
    tensors = getattr(expected, "tensors", {})
    assert list(getattr(got, "tensors", {})) == list(tensors)
    for key, array in tensors.items():
        np.testing.assert_array_equal(got.tensors[key], array)  # type: ignore[attr-defined]
        assert got.tensors[key].dtype == array.dtype  # type: ignore[attr-defined]


@each_message
def test_any_msgpack_reader_can_read_them(name: str) -> None:
    # Given a reader that knows msgpack, and of us only this rule: each tensor starts at the next
    # multiple of 8 in ``data``
    message = MESSAGES[name]
    told = msgpack.unpackb((GOLDEN / f"{name}.bin").read_bytes())
    assert (told["schema"], told["type"]) == (1, message.type)
    assert told["run"] == message.run.model_dump()

    # Then it finds every tensor
    start = 0
    for key, dtype, shape in told.get("tensors", []):
        start += -start % 8
        array = getattr(message, "tensors")[key]  # noqa: B009
        stored = np.frombuffer(told["data"], np.dtype(dtype).newbyteorder("<"), array.size, start)
        np.testing.assert_array_equal(stored.reshape(shape), array)
        start += array.nbytes
    assert start == len(told.get("data", b""))
