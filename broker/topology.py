"""Every name, argument and property that we have on a RabbitMQ server (docs/architecture.md).

Arguments are protocol constants: a queue that is there already with others answers 406. Nothing
here is deprecated in RabbitMQ 4 (no transient queue that is not exclusive, no global QoS), and
nothing needs more than 3.10: what is newer (``x-consumer-…timeout``) it stores and passes over.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fluffle.schemas.errors import UserError, printable
from fluffle.schemas.sizes import MIB

#: A message that came back this often and then once more is dead.
DELIVERY_LIMIT = 20
#: Updates that wait; more are refused, and their senders wait.
UPDATES_MAX_BYTES = 4 * 1024 * MIB
#: A turn is its worker's for as long as it trains: its deadline is the coordinator's, and a worker
#: that dies loses its connection. From 3.12 on RabbitMQ holds to this, whatever its own timeout.
TURN_TIMEOUT_S = 7 * 24 * 3600
#: What a dead node's consumers hold goes to others after this (4.3; older servers do not wait).
GIVEN_BACK_S = 5
#: A probe for the lead is of no use later; a leader whose node died is replaced after this.
PROBE_TTL_S, LEAD_GIVEN_BACK_S = 10, 2
#: Of what could not be used the newest are kept.
REJECTED_MAX_BYTES = 2 * 1024 * MIB
#: And for a week: each copy says so itself, as arguments of a queue that is there cannot change.
REJECTED_TTL_S = 7 * 24 * 3600.0
#: Requests to a helper and its answers that wait: one that is lost is asked for again.
HELPER_MAX_LENGTH = 64
EVENTS_MAX_LENGTH = 10_000
EVENTS_TTL_S = 60
#: The late joiners' store: whole segments beyond this are deleted, the last one stays.
LATEST_MODEL_MAX_BYTES = 64 * MIB
LATEST_MODEL_SEGMENT_BYTES = 16 * MIB

#: Routing keys.
UPDATES = "updates"
EVENTS = "events"
ASSIGNMENTS = "assignments"
REJECTED = "rejected"
PROBE = "probe"
STORE = "latest-model"
UNMASK = "unmask"
MASKS = "masks"


@dataclass(frozen=True)
class Queue:
    """A queue, and the exchange and key it is bound by (None: bound by nothing)."""

    name: str
    arguments: Mapping[str, Any]
    exchange: str | None = None
    key: str = ""
    exclusive: bool = False

    @property
    def durable(self) -> bool:
        """Exclusive queues go with their connection; all others outlive the broker."""
        return not self.exclusive


@dataclass(frozen=True)
class Topology:
    """The names of one federation."""

    federation: str = "fluffle"

    def __post_init__(self) -> None:
        """Raises: UserError where names of queues, patterns of rights or a log would suffer."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.federation):
            raise UserError(
                f"--federation {printable(self.federation, 80)}: use letters, digits, dots, _ and "
                "-, 64 at most"
            )

    @property
    def global_model(self) -> str:
        """Fanout exchange: every new global model."""
        return f"{self.federation}.global-model"

    @property
    def assign(self) -> str:
        """Direct exchange: turns."""
        return f"{self.federation}.assign"

    @property
    def submit(self) -> str:
        """Direct exchange: what workers send."""
        return f"{self.federation}.submit"

    @property
    def dead_letter(self) -> str:
        """Direct exchange: what could not be used."""
        return f"{self.federation}.dead-letter"

    @property
    def exchanges(self) -> Mapping[str, str]:
        """Name -> type, all durable."""
        return {
            self.global_model: "fanout",
            self.assign: "direct",
            self.submit: "direct",
            self.dead_letter: "direct",
        }

    @property
    def latest_model(self) -> Queue:
        """Stream: late joiners read its end."""
        arguments = {
            "x-queue-type": "stream",
            "x-max-length-bytes": LATEST_MODEL_MAX_BYTES,
            "x-stream-max-segment-size-bytes": LATEST_MODEL_SEGMENT_BYTES,
        }
        return Queue(f"{self.federation}.latest-model", _frozen(arguments), self.global_model)

    @property
    def assignments(self) -> Queue:
        """Work queue: turns for pooled clients, each with an expiration of its own."""
        arguments = {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-consumer-timeout": TURN_TIMEOUT_S * 1000,
            "x-consumer-disconnected-timeout": GIVEN_BACK_S * 1000,
        }
        name = f"{self.federation}.assignments"
        return Queue(name, _frozen(arguments), self.assign, ASSIGNMENTS)

    @property
    def updates(self) -> Queue:
        """Work queue: updates, failures and evaluations."""
        arguments = {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": self.dead_letter,
            "x-dead-letter-routing-key": REJECTED,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-max-length-bytes": UPDATES_MAX_BYTES,
            "x-consumer-disconnected-timeout": GIVEN_BACK_S * 1000,
        }
        return Queue(f"{self.federation}.updates", _frozen(arguments), self.submit, UPDATES)

    @property
    def events(self) -> Queue:
        """Quorum queue of what may be lost: a classic one would be out of reach with its node."""
        arguments = {
            "x-queue-type": "quorum",
            "x-max-length": EVENTS_MAX_LENGTH,
            "x-message-ttl": EVENTS_TTL_S * 1000,
        }
        return Queue(f"{self.federation}.events", _frozen(arguments), self.submit, EVENTS)

    @property
    def rejected(self) -> Queue:
        """Quorum queue behind the dead-letter exchange: for a person to look at."""
        arguments = {"x-queue-type": "quorum", "x-max-length-bytes": REJECTED_MAX_BYTES}
        name = f"{self.federation}.updates.rejected"
        return Queue(name, _frozen(arguments), self.dead_letter, REJECTED)

    @property
    def aggregator(self) -> Queue:
        """Quorum queue behind an exchange of its name: whom it serves leads."""
        name = f"{self.federation}.aggregator"
        arguments = {
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            "x-max-length": 1,
            "x-overflow": "drop-head",
            "x-message-ttl": PROBE_TTL_S * 1000,
            "x-consumer-disconnected-timeout": LEAD_GIVEN_BACK_S * 1000,
        }
        return Queue(name, _frozen(arguments), name, PROBE)

    @property
    def helper(self) -> str:
        """Direct exchange between an aggregator and the helper of secure aggregation."""
        return f"{self.federation}.helper"

    @property
    def unmask(self) -> Queue:
        """Work queue of the helper's: sets whose masks an aggregator asks for."""
        return self._of_helper(UNMASK)

    @property
    def masks(self) -> Queue:
        """Work queue of the aggregator's: the helper's answers."""
        return self._of_helper(MASKS)

    def _of_helper(self, key: str) -> Queue:
        arguments = {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-max-length": HELPER_MAX_LENGTH,
            "x-consumer-disconnected-timeout": GIVEN_BACK_S * 1000,
        }
        return Queue(f"{self.federation}.{key}", _frozen(arguments), self.helper, key)

    def mailbox(self, worker_id: str) -> Queue:
        """Exclusive queue of one connection of one worker: the newest model only.

        The nonce lets a restarted worker in at once: the old name stays locked until the broker
        has missed the heartbeats of the old connection.
        """
        arguments = {"x-queue-type": "classic", "x-max-length": 1, "x-overflow": "drop-head"}
        name = f"{self.federation}.worker.{worker_id}.{secrets.token_hex(4)}"
        return Queue(name, _frozen(arguments), self.global_model, exclusive=True)

    @property
    def shared(self) -> tuple[Queue, ...]:
        """All queues that outlive a connection; what dead letters go to comes first."""
        return self.rejected, self.updates, self.events, self.assignments, self.latest_model

    @property
    def bindings(self) -> tuple[tuple[str, str, str], ...]:
        """Exchange, queue and key of all that is bound for longer than a connection.

        The store of models has a way of its own: see ``publish_model``.
        """
        usual = [(queue.exchange or "", queue.name, queue.key) for queue in self.shared]
        return *usual, (self.assign, self.latest_model.name, STORE)


def _frozen(arguments: dict[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(arguments)
