"""The transport of messages, in the domain's verbs. ``embedded`` and ``rabbitmq`` implement it.

A ``Broker`` is where a federation meets; it hands out ports. A port is thread-safe, keeps its
connection alive by itself and hides reconnects: after one the topology is there again, what was
not confirmed has been published again, and every delivery that was not acked comes back with a
new receipt (acking an old one does nothing). Order between messages is never promised.

The transport moves bytes. It reads only an envelope's headers, and of those only what
``fluffle.schemas.messages.order`` needs to tell a newer model from an older one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fluffle.schemas import DecodeError, GlobalModel, Message, decode, encode, encoded_size
from fluffle.schemas.codec import MAX_MESSAGE_BYTES
from fluffle.schemas.messages import order


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message with the properties that make RabbitMQ's UI readable.

    It holds the message's bytes, or the message itself: within a process nobody needs bytes.
    """

    content: bytes | Message
    type: str = ""
    message_id: str = ""
    headers: Mapping[str, int | str] = field(default_factory=dict)
    #: On arrival: the user that the broker vouches for (None on the embedded broker).
    user_id: str | None = None
    #: On arrival: SHA-256 of a body that is too long to be kept (``body`` is then empty).
    too_large: str = ""
    #: Bytes that the body has.
    size: int = field(init=False)

    def __post_init__(self) -> None:
        content = self.content
        size = len(content) if isinstance(content, bytes) else encoded_size(content)
        object.__setattr__(self, "size", size)

    @classmethod
    def of(cls, message: Message) -> Envelope:
        """A message with its properties. Its tensors are read-only from here on."""
        for array in (message.payload or {}).values():
            array.flags.writeable = False
        return cls(message, message.type, message.message_id, message.headers())

    @property
    def body(self) -> bytes:
        """The message's bytes, made anew where it holds none."""
        return self.content if isinstance(self.content, bytes) else encode(self.content)

    def message(self) -> Message:
        """The message; from bytes, its tensors are read-only views of them. Raises: DecodeError."""
        return decode(self.content) if isinstance(self.content, bytes) else self.content

    def model(self) -> GlobalModel | None:
        """The global model that its headers tell of; None where it holds none, or another."""
        try:
            model = self.message()
            told = order(self.headers)
        except (DecodeError, KeyError, TypeError):
            return None
        ours = isinstance(model, GlobalModel) and told == order(model.headers())
        return model if ours and isinstance(model, GlobalModel) else None


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A message in our hands until it is acked."""

    envelope: Envelope
    #: How often it was delivered before and came back (0 the first time).
    delivery_count: int
    #: The port's own; dead after a reconnect.
    receipt: object
    #: From the events, whatever its type says: acked already, and no decision is made from it.
    is_event: bool = False


class AggregatorPort(Protocol):
    """What an aggregator does with a broker. All but ``lead`` and ``close`` need the lead."""

    def lead(self, timeout_s: float) -> bool:
        """Take the leader's lock, waiting up to ``timeout_s``; True once this port leads.

        False: another leads. On a slow network it takes longer until the broker has said so. On the
        first call that succeeds the whole topology is declared.
        """
        ...

    def latest_model(self, timeout_s: float = 2.0) -> Envelope | None:
        """The newest model that anybody published here, whatever its run; None if there is none."""
        ...

    def publish_model(self, envelope: Envelope) -> None:
        """To every mailbox and to the late joiners' store; returns once confirmed.

        Raises: MessageTooLarge, LeadershipLost, Closed.
        """
        ...

    def assign(self, envelopes: Sequence[Envelope], expires_s: float) -> None:
        """Put turns into the work queue, each gone after ``expires_s``.

        They may leave later, and do as long as this port lives: a lost turn is for the next leader.
        """
        ...

    def purge_assignments(self) -> int:
        """Remove the turns that no worker holds; how many they were."""
        ...

    def consume(self, prefetch: int, largest: int = MAX_MESSAGE_BYTES) -> None:
        """Start to receive updates and events, or go on with another prefetch (updates in hand).

        Deliveries in hand stay in hand when the prefetch changes. Bodies of more than ``largest``
        bytes need not be kept: see ``Envelope.too_large``.
        """
        ...

    def receive(self, timeout_s: float) -> Delivery | None:
        """The next update or event (``is_event``); None after ``timeout_s``.

        Events are acked by the port. Raises: LeadershipLost, Closed.
        """
        ...

    def ack(self, deliveries: Iterable[Delivery]) -> None:
        """Settle deliveries that are durable. Receipts from before a reconnect are skipped."""
        ...

    def reject(self, delivery: Delivery, reason: str) -> None:
        """A confirmed copy with a ``reason`` header to ``updates.rejected``, then the ack.

        Of a body that was not kept the broker itself sets the message aside, without the header.
        """
        ...

    def ask_helper(self, envelope: Envelope) -> None:
        """Send this to the helper; returns once confirmed. Asked again it answers the same.

        Raises: LeadershipLost, Closed.
        """
        ...

    def receive_masks(self, timeout_s: float) -> Envelope | None:
        """The next answer of the helper's, whatever it answers; None after ``timeout_s``.

        Raises: LeadershipLost, Closed.
        """
        ...

    def close(self) -> None:
        """Give everything unacked and the leader's lock back. May be called twice."""
        ...


class WorkerPort(Protocol):
    """What a worker or an evaluator does with a broker."""

    @property
    def user(self) -> str | None:
        """Whom the broker takes us for; None where it knows nobody by name."""
        ...

    def newest_model(self) -> Envelope | None:
        """The newest model seen so far, from the mailbox or the late joiners' store."""
        ...

    def wait_model(
        self, newer_than: tuple[int, int, int, int] | None, timeout_s: float
    ) -> Envelope | None:
        """The newest model once its ``order`` is above ``newer_than``; None after ``timeout_s``."""
        ...

    def forget_model(self, envelope: Envelope) -> None:
        """This is no model: its order keeps out no other. The real newest comes when it is next
        published, which a leader that makes no version does again and again.
        """
        ...

    def receive_assignment(self, timeout_s: float) -> Delivery | None:
        """The next turn; at most ``slots`` are unacked at a time. Raises: Closed."""
        ...

    def ack(self, delivery: Delivery) -> None:
        """This turn is done with: its answer is confirmed, or it was for another time."""
        ...

    def submit(self, envelope: Envelope) -> None:
        """Send what an aggregator must not lose; returns once the broker has confirmed it.

        Waits, and says so, while the broker is away or the queue full. Raises: MessageTooLarge,
        Closed.
        """
        ...

    def emit(self, envelope: Envelope) -> None:
        """Send an event. Returns at once; it may be lost."""
        ...

    def close(self) -> None:
        """Give unacked turns back and delete the mailbox. May be called twice."""
        ...


class HelperPort(Protocol):
    """What a helper of secure aggregation does with a broker."""

    def receive(self, timeout_s: float) -> Delivery | None:
        """The next request; None after ``timeout_s``. Raises: Closed."""
        ...

    def answer(self, envelope: Envelope) -> None:
        """Send an answer; returns once confirmed. Raises: MessageTooLarge, Closed."""
        ...

    def ack(self, delivery: Delivery) -> None:
        """This request is answered."""
        ...

    def close(self) -> None:
        """Give everything unacked back. May be called twice."""
        ...


class Broker(Protocol):
    """Where a federation meets."""

    def aggregator(self) -> AggregatorPort:
        """A port for one aggregator."""
        ...

    def worker(self, worker_id: str, slots: int) -> WorkerPort:
        """A port for one worker; ``slots`` = 0 takes no turns (an evaluator, a resident site)."""
        ...

    def helper(self) -> HelperPort:
        """A port for the helper of secure aggregation."""
        ...
