"""The topology, declared by a leader and kept: what somebody deletes or unbinds is made again.

Nobody is told when an exchange or a binding goes, so the caretaker looks every few seconds.

On a broker whose operators declare the topology an aggregator has no right to::

    declare ─┬─ done
             └─ 403 ─> look at each, passively ─┬─ all there: take them as they are, bind nothing
                                                ├─ 404 before anything has stood: give up, and say
                                                │  both; later: wait for the operators
                                                └─ 403: give up
"""

from __future__ import annotations

from weakref import WeakSet

from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker

from fluffle.broker.errors import AccessRefused
from fluffle.broker.rabbitmq.connection import Link
from fluffle.broker.rabbitmq.robust_channel import ACCESS_REFUSED, NOT_FOUND, RobustChannel
from fluffle.broker.topology import Topology

#: From one look to the next.
_LOOK_S = 5.0


class Declarations:
    """How one leader sees to the topology of its federation. In its links' I/O threads only."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        #: Others declare: what the broker said when we tried to.
        self._refused: ChannelClosedByBroker | None = None
        #: Channels on which we have tried to.
        self._tried: WeakSet[Channel] = WeakSet()

    def declare(self, channel: Channel) -> None:
        """All exchanges and shared queues of a federation; what is there already stays as it is."""
        if self._refused is not None:
            self.look(channel)
            return
        self._tried.add(channel)
        for exchange, kind in self.topology.exchanges.items():
            channel.exchange_declare(exchange, kind, durable=True)
        for queue in self.topology.shared:
            channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
        self._bind(channel)

    def look(self, channel: Channel) -> None:
        """Whether all is there; bindings, at which nobody can look, are made where we may."""
        for exchange in self.topology.exchanges:
            channel.exchange_declare(exchange, passive=True)
        for queue in self.topology.shared:
            channel.queue_declare(queue.name, passive=True)
        if self._refused is None:
            self._bind(channel)

    def broken(self, channel: Channel, error: BaseException, link: Link, stood: bool) -> bool:
        """True where a refusal only means that others declare; as ``RobustChannel.broken``."""
        if not isinstance(error, ChannelClosedByBroker):
            return False
        if error.reply_code == ACCESS_REFUSED and channel in self._tried:
            if self._refused is None:
                self._refused = error
                link.inform("may not declare queues here: takes those that the operators made")
            return True
        if error.reply_code == NOT_FOUND and self._refused is not None and not stood:
            link.fail(
                AccessRefused(
                    f"RabbitMQ refused a right that is needed ({self._refused.reply_text}), and "
                    f"its operators have not declared it all either ({error.reply_text}): fluffle "
                    "broker definitions --declared makes a file for them"
                )
            )
            return True
        return False

    def _bind(self, channel: Channel) -> None:
        """All shared queues to their exchanges; a binding that is there stays."""
        for exchange, queue, key in self.topology.bindings:
            channel.queue_bind(queue, exchange, key)


class Caretaker(RobustChannel):
    """A channel of its own: what is missing closes it, is said, and is declared by the next one."""

    def __init__(self, link: Link, declarations: Declarations) -> None:
        super().__init__(link, declarations)
        self._declarations = declarations

    def opened(self, channel: Channel) -> None:
        """As ``RobustChannel``."""
        self._declarations.declare(channel)
        channel.basic_qos(callback=lambda _frame: self._declared(channel))

    def _declared(self, channel: Channel) -> None:
        """All before it was taken as well."""
        self.backoff.reset()
        self.stands()
        self.link.later(_LOOK_S, lambda: self._look(channel))

    def _look(self, channel: Channel) -> None:
        if not channel.is_open:
            return
        self._declarations.look(channel)
        self.link.later(_LOOK_S, lambda: self._look(channel))
