"""Envelopes to AMQP properties and back."""

from __future__ import annotations

import time
from typing import Any

from pika import BasicProperties

from broker.transport import Envelope

PERSISTENT = 2


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
        content_type="application/msgpack",
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


def envelope(properties: BasicProperties, body: bytes) -> Envelope:
    """The envelope that arrived. Headers of the broker's own (``x-…``) are left out."""
    headers = {
        # pika reads large integers as a subclass of int.
        key: int(value) if isinstance(value, int) else value
        for key, value in _headers(properties).items()
        if isinstance(key, str) and isinstance(value, int | str) and not key.startswith("x-")
    }
    return Envelope(
        body,
        properties.type or "",
        properties.message_id or "",
        headers,
        properties.user_id,
    )


def delivery_count(properties: BasicProperties) -> int:
    """How often a quorum queue delivered this before."""
    count = _headers(properties).get("x-delivery-count", 0)
    return count if isinstance(count, int) else 0


def _headers(properties: BasicProperties) -> dict[Any, Any]:
    return properties.headers if isinstance(properties.headers, dict) else {}
