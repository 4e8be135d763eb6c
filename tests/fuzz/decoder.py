"""Coverage-guided fuzzing of the decoder: ``make fuzz SECONDS=600``.

    python -m tests.fuzz.decoder CORPUS… [options of libFuzzer]

libFuzzer keeps in the first CORPUS what reaches new code; an input that breaks a promise, takes ten
seconds or too much memory ends the process, and is written beside it as ``crash-…``.

Half of the mutations are libFuzzer's own, of bytes. The other half change a value of a message that
msgpack can read, and stay well-formed: so the fuzzer gets beyond the first byte that is wrong.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import atheris
import msgpack

with atheris.instrument_imports(include=["fluffle.schemas"]):
    from tests.fuzz.promises import check

VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 2**53, 2**53 + 1, 2**63, 2**64 - 1, 0.0, -1.5),
    *(float("nan"), float("inf"), "", "a", "../x", "\n", "\x00", "0", "x" * 201, b"", b"\xff"),
    *([], [0], [[]], {}, {"a": 0}, "trainable/0", "float32", "bool", "float64", [1], [2, 2]),
)


def mutate(body: bytes, max_size: int, seed: int) -> bytes:
    """Another input made from this one."""
    draw = random.Random(seed)
    if draw.random() < 0.5:
        return bytes(atheris.Mutate(body, max_size))
    try:
        told = msgpack.unpackb(body, strict_map_key=False)
    except Exception:
        return bytes(atheris.Mutate(body, max_size))
    for _ in range(draw.choice((1, 1, 2, 4))):
        told = _changed(told, draw)
    try:
        changed = bytes(msgpack.packb(told))
    except Exception:  # an integer beyond 64 bits, say
        return bytes(atheris.Mutate(body, max_size))
    if isinstance(told, dict) and isinstance(told.get("data"), bytes) and draw.random() < 0.9:
        changed = _with_long_data(told)
    return changed[:max_size]


def _changed(told: Any, draw: random.Random) -> Any:
    """A value somewhere in it is another one, gone, or there twice."""
    if isinstance(told, dict) and told:
        key = draw.choice(list(told))
        how = draw.random()
        if how < 0.6:
            told[key] = _changed(told[key], draw)
        elif how < 0.8:
            del told[key]
        else:
            told[draw.choice((key, f"{key}x", "tensors", "data", "pad"))] = draw.choice(VALUES)
        return told
    if isinstance(told, list) and told and draw.random() < 0.7:
        at = draw.randrange(len(told))
        if draw.random() < 0.2:
            told.insert(at, told[at])
        else:
            told[at] = _changed(told[at], draw)
        return told
    if isinstance(told, bytes) and draw.random() < 0.5:
        return told + bytes(draw.randrange(32)) if draw.random() < 0.5 else told[:-1]
    return draw.choice(VALUES)


def _with_long_data(told: dict[str, Any]) -> bytes:
    """``data`` last, and its length in four bytes, as the codec writes it."""
    data = told.pop("data")
    packer = msgpack.Packer(autoreset=False)
    packer.pack_map_header(len(told) + 1)
    for key, value in told.items():
        packer.pack(key)
        packer.pack(value)
    packer.pack("data")
    return bytes(packer.bytes()) + b"\xc6" + len(data).to_bytes(4, "big") + data


if __name__ == "__main__":
    atheris.Setup(sys.argv, check, custom_mutator=mutate)
    atheris.Fuzz()
