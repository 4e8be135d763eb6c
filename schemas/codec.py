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
from functools import lru_cache
from typing import Any

import msgpack
import numpy as np
from pydantic import ValidationError

from fluffle.schemas.errors import DecodeError
from fluffle.schemas.messages import TYPES, Message
from fluffle.schemas.sizes import MIB
from fluffle.schemas.tensors import DTYPES, NAME, Array, Tensors, dtype_name, raw

SCHEMA_VERSION = 1

#: RabbitMQ's own ceiling for one message. Files may be larger: a checkpoint has float64 sums.
MAX_MESSAGE_BYTES = 512 * MIB
#: Everything but the tensors and their table. An empty list takes one byte on the wire and 64 in
#: memory, so this also bounds what a hostile head can make us allocate.
MAX_HEAD_BYTES = 64 * 1024
#: Entries of any list or map in the head.
MAX_ENTRIES = 64
MAX_TENSORS = 20_000
MAX_RANK = 8
#: What the length of ``data`` is written in.
MAX_DATA_BYTES = 2**32 - 1
_ALIGN = 16


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    head, tensors = _parts_of(message)
    return bytes(msgpack.packb(head)) if tensors is None else pack(head, tensors)


def encoded_size(message: Message) -> int:
    """How many bytes ``encode`` would give; touches no tensor."""
    head, tensors = _parts_of(message)
    if tensors is None:
        return len(msgpack.packb(head))
    return len(_packed_head(head, tensors)) + 5 + _data_bytes(tensors)


def _parts_of(message: Message) -> tuple[dict[str, Any], Tensors | None]:
    fields = message.model_dump(mode="python", exclude={"tensors"}, exclude_none=True)
    return {"schema": SCHEMA_VERSION, "type": message.type, **fields}, message.payload


def decode(body: bytes) -> Message:
    """The message that these bytes hold; its tensors are read-only views of ``body``.

    Raises: DecodeError, whatever is wrong.
    """
    if len(body) > MAX_MESSAGE_BYTES:
        raise DecodeError(f"{len(body)} bytes are more than {MAX_MESSAGE_BYTES}")
    head, tensors = unpack(body)
    try:
        schema = head.pop("schema", None)
        if type(schema) is not int or schema != SCHEMA_VERSION:
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
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"][:4])
        raise DecodeError(one_line(f"{where}: {first['msg']}")) from None


def pack(head: Mapping[str, Any], tensors: Tensors) -> bytes:
    """A msgpack map of ``head`` and ``tensors``; also the format of the files in a run folder.

    Raises: ValueError for a tensor that ``unpack`` would not take.
    """
    start, size = _packed_head(head, tensors), _data_bytes(tensors)
    parts: list[bytes | memoryview] = [start, b"\xc6", size.to_bytes(4, "big")]
    end = 0
    for array in tensors.values():
        gap = -end % 8
        parts += [bytes(gap), raw(array)]
        end += gap + array.nbytes
    return b"".join(parts)


def _data_bytes(tensors: Tensors) -> int:
    """How long ``data`` is: each tensor starts on a multiple of 8."""
    size = 0
    for array in tensors.values():
        size += -size % 8 + array.nbytes
    if size > MAX_DATA_BYTES:
        raise ValueError(f"{size} bytes of tensors are more than {MAX_DATA_BYTES}")
    return size


def _packed_head(head: Mapping[str, Any], tensors: Tensors) -> bytes:
    """Everything before ``data``'s own bytes and their length."""
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"{len(tensors)} tensors are more than {MAX_TENSORS}")
    for key, array in tensors.items():
        _check_entry(key, dtype_name(array), array.shape)
    packer = msgpack.Packer(autoreset=False)
    packer.pack_map_header(len(head) + 3)
    for key, value in head.items():
        packer.pack(key)
        packer.pack(value)
    packer.pack("tensors")
    packer.pack([[key, dtype_name(a), a.shape] for key, a in tensors.items()])
    packer.pack("pad")
    # What follows is bin8 (2 bytes), the padding, the key "data" (5) and its bin32 header (5).
    pad = -(len(packer.getbuffer()) + 12) % _ALIGN
    packer.pack(bytes(pad))
    packer.pack("data")
    return bytes(packer.bytes())


def unpack(body: bytes) -> tuple[dict[str, Any], Tensors | None]:
    """Head and tensors of a packed map; the tensors are read-only views of ``body``.

    Raises: DecodeError, whatever is wrong.
    """
    try:
        return _read(body)
    except DecodeError:
        raise
    except Exception as error:  # total: whatever msgpack or NumPy raise on hostile bytes
        raise DecodeError(one_line(f"{type(error).__name__}: {error}")) from None


def _read(body: bytes) -> tuple[dict[str, Any], Tensors | None]:
    unpacker = msgpack.Unpacker(
        io.BytesIO(body),
        read_size=min(len(body), 4096) or 1,
        max_buffer_size=MAX_HEAD_BYTES,
        max_str_len=MAX_HEAD_BYTES,
        max_bin_len=_ALIGN,
        max_array_len=MAX_ENTRIES,
        max_map_len=MAX_ENTRIES,
        max_ext_len=0,
        object_pairs_hook=_map,
    )
    head: dict[str, Any] = {}
    table: list[_Entry] | None = None
    table_bytes = 0
    entries = unpacker.read_map_header()
    if entries > MAX_ENTRIES:
        raise DecodeError(f"{entries} keys are more than {MAX_ENTRIES}")
    for i in range(entries):
        key = unpacker.unpack()
        if not isinstance(key, str) or key in head or (key == "tensors" and table is not None):
            raise DecodeError("a key is no string, or stands twice")
        start = unpacker.tell()
        if key == "data":
            if i != entries - 1 or table is None:
                raise DecodeError("data is not last, or has no table")
            head.pop("pad", None)
            return head, _views(body, start, table)
        if key == "tensors":
            table = _table(unpacker)
            table_bytes = unpacker.tell() - start
        else:
            head[key] = unpacker.unpack()
        if unpacker.tell() - table_bytes > MAX_HEAD_BYTES:
            raise DecodeError(f"a head of more than {MAX_HEAD_BYTES} bytes")
    if unpacker.tell() != len(body):
        raise DecodeError("bytes after the end")
    if table is not None:
        raise DecodeError("a table without data")
    return head, None


def _map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DecodeError("a key stands twice")
    return found


_Entry = tuple[str, np.dtype[np.generic], list[int]]


def _table(unpacker: Any) -> list[_Entry]:
    """[[name, dtype, [shape]], …], read entry by entry: a declared length allocates nothing."""
    count = unpacker.read_array_header()
    if count > MAX_TENSORS:
        raise DecodeError(f"{count} tensors are more than {MAX_TENSORS}")
    table = []
    for _ in range(count):
        if unpacker.read_array_header() != 3:
            raise DecodeError("a tensor's entry is not [name, dtype, shape]")
        name, dtype = unpacker.unpack(), unpacker.unpack()
        rank = unpacker.read_array_header()
        if rank > MAX_RANK:
            raise DecodeError(f"a tensor of rank {rank}")
        table.append(_entry(name, dtype, [unpacker.unpack() for _ in range(rank)]))
    return table


def _entry(name: object, dtype: object, shape: list[Any]) -> _Entry:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise DecodeError("a tensor's name is not group/index")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise DecodeError(f"{name}: a tensor of this dtype cannot travel")
    if len(shape) > MAX_RANK or not all(type(n) is int and 0 <= n < 2**32 for n in shape):
        raise DecodeError(f"{name}: a dimension is out of range")
    return name, DTYPES[dtype], shape


@lru_cache(maxsize=4096)
def _check_entry(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """``_entry``'s checks, remembered: a model's tensors are always the same."""
    _entry(name, dtype, list(shape))


def _views(body: bytes, start: int, table: list[_Entry]) -> Tensors:
    size = int.from_bytes(body[start + 1 : start + 5], "big")
    start += 5
    if body[start - 5 : start - 4] != b"\xc6" or start + size != len(body):
        raise DecodeError("data is not as long as it says")
    tensors: Tensors = {}
    offset = 0
    for name, dtype, shape in table:
        if name in tensors:
            raise DecodeError("a tensor stands twice")
        offset += -offset % 8
        count = math.prod(shape)
        nbytes = count * dtype.itemsize
        if offset + nbytes > size:
            raise DecodeError("tensors are longer than their data")
        flat: Array = np.frombuffer(body, dtype, count, start + offset)
        if dtype == np.bool_ and flat.view(np.uint8).max(initial=0) > 1:
            raise DecodeError(f"{name}: neither true nor false")
        tensors[name] = flat.reshape(shape)
        offset += nbytes
    if offset != size:
        raise DecodeError("data is longer than its tensors")
    return tensors


def one_line(text: str) -> str:
    """At most 200 characters that are safe to print: the bytes may be anybody's."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])
