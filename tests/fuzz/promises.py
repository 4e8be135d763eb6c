"""What the decoder promises for any bytes at all.

``decode`` gives a message or ``DecodeError``, ``unpack`` a head with tensors or ``DecodeError``;
what an error says is fit to print; and what was decoded, encoded again, decodes to the same.
"""

from __future__ import annotations

from fluffle.schemas import DecodeError, Message, decode, encode
from fluffle.schemas.codec import pack, unpack
from fluffle.schemas.tensors import Tensors


def check(body: bytes) -> Message | None:
    """Raises where a promise is broken; the message, if these bytes are one."""
    try:
        head, tensors = unpack(body)
    except DecodeError as error:
        _is_fit_to_print(error)
    else:
        if tensors is not None:
            assert _bytes_of(unpack(pack(head, tensors))[1]) == _bytes_of(tensors)
    try:
        message = decode(body)
    except DecodeError as error:
        _is_fit_to_print(error)
        return None
    assert isinstance(message, Message)
    _survives_a_round_trip(message)
    return message


def _survives_a_round_trip(message: Message) -> None:
    body = encode(message)
    again = decode(body)
    assert type(again) is type(message)
    assert again.model_dump(exclude={"tensors"}) == message.model_dump(exclude={"tensors"})
    assert _bytes_of(getattr(again, "tensors", None)) == _bytes_of(
        getattr(message, "tensors", None)
    )
    assert encode(again) == body
    assert all(isinstance(value, int | str) for value in message.headers().values())


def _bytes_of(tensors: Tensors | None) -> object:
    """To compare by: NaN is as good as any number here."""
    return tensors and [(k, a.dtype, a.shape, a.tobytes()) for k, a in tensors.items()]


def _is_fit_to_print(error: DecodeError) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 1000
