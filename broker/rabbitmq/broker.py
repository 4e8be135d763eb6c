"""The broker that is a RabbitMQ server, 3.10 to 4.x."""

from __future__ import annotations

from fluffle.broker.rabbitmq.aggregator import RabbitMQAggregatorPort
from fluffle.broker.rabbitmq.helper import RabbitMQHelperPort
from fluffle.broker.rabbitmq.port import Settings
from fluffle.broker.rabbitmq.worker import RabbitMQWorkerPort
from fluffle.broker.topology import Topology


class RabbitMQBroker:
    """Where the processes of a federation meet."""

    def __init__(
        self,
        url: str,
        federation: str = "fluffle",
        role_name: str | None = None,
        *,
        connect_timeout_s: float = 30.0,
        heartbeat_s: int = 20,
    ) -> None:
        """
        url: amqp:// or amqps://, as pika reads it; options in it win.
        federation: prefix of every name on the server.
        role_name: in the names of connections, instead of "aggregator" and "worker <id>".
        connect_timeout_s: for the first connection of each port; later ones are tried for ever.
        heartbeat_s: a peer that is silent for twice this is dead.
        """
        self._settings = Settings(
            url, Topology(federation), role_name, connect_timeout_s, heartbeat_s
        )

    def aggregator(self) -> RabbitMQAggregatorPort:
        """A port for one aggregator. Raises: BrokerUnreachable, AccessRefused."""
        return RabbitMQAggregatorPort(self._settings)

    def worker(self, worker_id: str, slots: int) -> RabbitMQWorkerPort:
        """A port for one worker; ``slots`` = 0 takes no turns.

        Raises: BrokerUnreachable, AccessRefused.
        """
        return RabbitMQWorkerPort(self._settings, worker_id, slots)

    def helper(self) -> RabbitMQHelperPort:
        """A port for the helper of secure aggregation. Raises: BrokerUnreachable, AccessRefused."""
        return RabbitMQHelperPort(self._settings)
