"""The topology, declared by a leader and kept: what somebody deletes or unbinds is made again.

Nobody is told when an exchange or a binding goes, so the caretaker looks every few seconds.
"""

from __future__ import annotations

from pika.channel import Channel

from fluffle.broker.rabbitmq.connection import Link
from fluffle.broker.rabbitmq.robust_channel import RobustChannel
from fluffle.broker.topology import Topology

#: From one look to the next.
_LOOK_S = 5.0


def declare(channel: Channel, topology: Topology) -> None:
    """All exchanges and shared queues of a federation; what is there already stays as it is."""
    for exchange, kind in topology.exchanges.items():
        channel.exchange_declare(exchange, kind, durable=True)
    for queue in topology.shared:
        channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
    bind(channel, topology)


def bind(channel: Channel, topology: Topology) -> None:
    """All shared queues to their exchanges; a binding that is there stays."""
    for queue in topology.shared:
        channel.queue_bind(queue.name, queue.exchange, queue.key)


class Caretaker(RobustChannel):
    """A channel of its own: what is missing closes it, is said, and is declared by the next one."""

    def __init__(self, link: Link, topology: Topology) -> None:
        super().__init__(link)
        self._topology = topology

    def opened(self, channel: Channel) -> None:
        """As ``RobustChannel``."""
        declare(channel, self._topology)
        channel.basic_qos(callback=lambda _frame: self._declared(channel))

    def _declared(self, channel: Channel) -> None:
        """All before it was taken as well."""
        self.backoff.reset()
        self.stands()
        self.link.later(_LOOK_S, lambda: self._look(channel))

    def _look(self, channel: Channel) -> None:
        if not channel.is_open:
            return
        for exchange in self._topology.exchanges:
            channel.exchange_declare(exchange, passive=True)
        for queue in self._topology.shared:
            channel.queue_declare(queue.name, passive=True)
        bind(channel, self._topology)
        self.link.later(_LOOK_S, lambda: self._look(channel))
