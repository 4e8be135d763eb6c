"""Envelopes to AMQP properties and back.

What arrives may be anybody's: properties that are not ours, or that a person could not read, are
left out, and few and short headers are kept, so that a copy with one header more fits into a frame.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

from pika import BasicProperties

from fluffle.broker.transport import Envelope

PERSISTENT = 2
CONTENT_TYPE = "application/msgpack"
#: Of headers.
MOST, LONGEST_KEY, LONGEST_VALUE = 32, 64, 512


def properties(
    envelope: Envelope,
    *,
    user: str | None,
    correlation_id: str | None = None,
    expires_s: float | None = None,
) -> BasicProperties:
    """The properties that carry an envelope.

    user: the connection's user; the broker refuses any other, so receivers can believe it.
    correlation_id: tells a returned message from the others.
    """
    return BasicProperties(
        content_type=CONTENT_TYPE,
        type=envelope.type or None,
        message_id=envelope.message_id[:255] or None,  # AMQP's short string
        headers=dict(envelope.headers),
        app_id="fluffle",
        timestamp=int(time.time()),
        user_id=user,
        delivery_mode=PERSISTENT,
        correlation_id=correlation_id,
        expiration=None if expires_s is None else str(max(0, round(expires_s * 1000))),
    )


def envelope(properties: BasicProperties, body: bytes, too_large: str = "") -> Envelope:
    """The envelope that arrived. Headers of the broker's own (``x-…``) are left out.

    One of another content type or encoding has no type: its body is not ours.
    """
    ours = properties.content_type == CONTENT_TYPE and not properties.content_encoding
    headers = {
        # pika reads large integers as a subclass of int.
        key: int(value) if isinstance(value, int) else value
        for key, value in _headers(properties).items()
        if _kept(key, value)
    }
    return Envelope(
        body,
        _text(properties.type) if ours else "",
        _text(properties.message_id),
        dict(islice(headers.items(), MOST)),
        properties.user_id,
        too_large,
    )


def delivery_count(properties: BasicProperties) -> int:
    """How often a quorum queue delivered this before, of a message that it delivers again.

    From 4.3 on what came back after a timeout or a node's death counts as acquired only.
    """
    told = [_headers(properties).get(name) for name in ("x-delivery-count", "x-acquired-count")]
    return max([1, *(count for count in told if isinstance(count, int))])


def _headers(properties: BasicProperties) -> dict[Any, Any]:
    return properties.headers if isinstance(properties.headers, dict) else {}


def _kept(key: object, value: object) -> bool:
    if not isinstance(key, str) or len(key) > LONGEST_KEY or key.startswith("x-"):
        return False
    return isinstance(value, int) or (isinstance(value, str) and len(value) <= LONGEST_VALUE)


def _text(value: object) -> str:
    """A short string, safe to print; pika gives bytes where it is not UTF-8."""
    return "".join(c if c.isprintable() else "?" for c in value) if isinstance(value, str) else ""
