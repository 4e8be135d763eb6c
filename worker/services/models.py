"""Reading global models: what cannot be read costs a worker nothing but a line."""

from __future__ import annotations

from fluffle.broker import Envelope
from fluffle.schemas import DecodeError, GlobalModel


def read_model(envelope: Envelope | None) -> GlobalModel | None:
    """The model in it; None where there is none, or none that we can read."""
    try:
        model = envelope.message() if envelope else None
    except DecodeError:
        return None
    return model if isinstance(model, GlobalModel) else None
