"""Messages to bytes and back: msgpack, with the tensors' raw bytes last.

A message is one msgpack map that any msgpack reader can read::

    {schema: 1, type: "client-update", …fields…,
     tensors: [[name, dtype, [shape]], …], pad: bin, data: bin32}

``data`` holds the tensors' little-endian bytes one after the other and is always the last value,
so a reader that has seen the rest knows where it lies: arrays are views of the received bytes,
never copies. ``pad`` puts ``data`` on a 16-byte boundary and each tensor starts on a multiple of
8, so that the views are aligned and NumPy works on them at full speed.

Decoding is total and bounded: whatever the bytes, the answer is a message or ``DecodeError``, and
nothing is allocated that the received bytes do not already hold.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
from pydantic import ValidationError

from schemas.errors import DecodeError
from schemas.messages import TYPES, Message
from schemas.tensors import DTYPES, NAME, Array, Tensors, raw

SCHEMA_VERSION = 1

#: RabbitMQ's own ceiling for one message.
MAX_MESSAGE_BYTES = 512 * 1024**2
#: Everything before ``data``.
MAX_HEADER_BYTES = 2 * 1024**2
MAX_TENSORS = 20_000
MAX_RANK = 8
_ALIGN = 16


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    fields = message.model_dump(mode="python", exclude={"tensors"}, exclude_none=True)
    head: dict[str, Any] = {"schema": SCHEMA_VERSION, "type": message.type, **fields}
    tensors: Tensors | None = getattr(message, "tensors", None)
    if tensors is None:
        return bytes(msgpack.packb(head))
    return pack(head, tensors)


def decode(body: bytes) -> Message:
    """The message that these bytes hold; its tensors are read-only views of ``body``.

    Raises: DecodeError, whatever is wrong.
    """
    try:
        head, tensors = unpack(body)
        if head.pop("schema", None) != SCHEMA_VERSION:
            raise DecodeError(f"not schema {SCHEMA_VERSION}")
        name = head.pop("type", None)
        cls = TYPES.get(name) if isinstance(name, str) else None
        if cls is None:
            raise DecodeError("unknown message type")
        if ("tensors" in cls.model_fields) != (tensors is not None):
            raise DecodeError("tensors missing or out of place")
        if tensors is not None:
            head["tensors"] = tensors
        return cls.model_validate(head)
    except DecodeError:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"][:4])
        raise DecodeError(f"{where}: {first['msg']}"[:200]) from None
    except Exception as error:  # total: whatever msgpack or NumPy raise on hostile bytes
        raise DecodeError(f"{type(error).__name__}: {error}"[:200].replace("\n", " ")) from None


def pack(head: Mapping[str, Any], tensors: Tensors) -> bytes:
    """A msgpack map of ``head`` and ``tensors``; also the format of the files in a run folder."""
    packer = msgpack.Packer(autoreset=False)
    packer.pack_map_header(len(head) + 3)
    for key, value in head.items():
        packer.pack(key)
        packer.pack(value)
    packer.pack("tensors")
    packer.pack([[key, a.dtype.name, list(a.shape)] for key, a in tensors.items()])
    packer.pack("pad")
    # What follows is bin8 (2 bytes), the padding, the key "data" (5) and its bin32 header (5).
    pad = -(len(packer.getbuffer()) + 12) % _ALIGN
    packer.pack(bytes(pad))
    packer.pack("data")
    parts: list[Any] = []
    size = 0
    for array in tensors.values():
        if array.dtype.name not in DTYPES:
            raise ValueError(f"dtype {array.dtype} cannot travel")
        gap = -size % 8
        parts += [bytes(gap), raw(array)]
        size += gap + array.nbytes
    return b"".join([packer.bytes(), b"\xc6", size.to_bytes(4, "big"), *parts])


def unpack(body: bytes) -> tuple[dict[str, Any], Tensors | None]:
    """Head and tensors of a packed map. Raises DecodeError, or what msgpack raises."""
    if len(body) > MAX_MESSAGE_BYTES:
        raise DecodeError(f"{len(body)} bytes are more than {MAX_MESSAGE_BYTES}")
    unpacker = msgpack.Unpacker(
        io.BytesIO(body),
        read_size=min(len(body), 4096) or 1,
        max_buffer_size=MAX_HEADER_BYTES,
        max_str_len=65_536,
        max_bin_len=65_536,
        max_array_len=MAX_TENSORS,
        max_map_len=10_000,
        max_ext_len=0,
    )
    head: dict[str, Any] = {}
    entries = unpacker.read_map_header()
    for i in range(entries):
        key = unpacker.unpack()
        if not isinstance(key, str) or key in head:
            raise DecodeError("a key is no string, or stands twice")
        if key == "data":
            if i != entries - 1:
                raise DecodeError("data is not last")
            table = head.pop("tensors", None)
            head.pop("pad", None)
            return head, _views(body, unpacker.tell(), table)
        head[key] = unpacker.unpack()
    if unpacker.tell() != len(body):
        raise DecodeError("bytes after the end")
    return head, None


def _views(body: bytes, start: int, table: object) -> Tensors:
    size = int.from_bytes(body[start + 1 : start + 5], "big")
    start += 5
    if body[start - 5 : start - 4] != b"\xc6" or start + size != len(body):
        raise DecodeError("data is not as long as it says")
    if not isinstance(table, list):
        raise DecodeError("no table of tensors")
    tensors: Tensors = {}
    offset = 0
    for entry in table:
        name, dtype, shape = _entry(entry)
        if name in tensors:
            raise DecodeError("a tensor stands twice")
        offset += -offset % 8
        count = math.prod(shape)
        nbytes = count * dtype.itemsize
        if offset + nbytes > size:
            raise DecodeError("tensors are longer than their data")
        flat: Array = np.frombuffer(body, dtype, count, start + offset)
        tensors[name] = flat.reshape(shape)
        offset += nbytes
    if offset != size:
        raise DecodeError("data is longer than its tensors")
    return tensors


def _entry(entry: object) -> tuple[str, np.dtype[np.generic], tuple[int, ...]]:
    if not isinstance(entry, list) or len(entry) != 3:
        raise DecodeError("a tensor's entry is not [name, dtype, shape]")
    name, dtype, shape = entry
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise DecodeError("a tensor's name is not group/index")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise DecodeError(f"{name}: dtype not allowed")
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise DecodeError(f"{name}: shape is no short list")
    if not all(type(n) is int and 0 <= n <= MAX_MESSAGE_BYTES for n in shape):
        raise DecodeError(f"{name}: a dimension is out of range")
    return name, DTYPES[dtype], tuple(shape)
