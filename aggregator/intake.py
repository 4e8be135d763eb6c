"""The intake: from an envelope to a message for the coordinator, or why there is none."""

from __future__ import annotations

from fluffle.aggregator.coordinator.admission import SENDER_CHECKS, first_reason
from fluffle.broker import Envelope
from fluffle.schemas import DecodeError, Experiment
from fluffle.schemas.messages import FromWorker


class Unusable(Exception):
    """No message for us; ``reason`` is one of ``admission.REASONS``."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def message_of(envelope: Envelope, experiment: Experiment, largest: int) -> FromWorker:
    """The message, cheapest checks first; ``largest`` in bytes. Raises: Unusable."""
    if envelope.too_large or envelope.size > largest:
        raise Unusable("too_large")
    try:
        message = envelope.message()
    except DecodeError as error:
        raise Unusable("undecodable", str(error)) from error
    if not isinstance(message, FromWorker) or message.type != envelope.type:
        raise Unusable("wrong_type")
    if experiment.identity == "broker":
        reason = first_reason(SENDER_CHECKS, message, envelope.user_id, experiment.residents)
        if reason is not None:
            raise Unusable(reason)
    return message
