"""Transport of messages: one protocol, in memory and over RabbitMQ. No machine learning."""

from fluffle.broker.errors import (
    AccessRefused,
    BrokerUnreachable,
    Closed,
    LeadershipLost,
    MessageTooLarge,
    TopologyMismatch,
)
from fluffle.broker.transport import AggregatorPort, Broker, Delivery, Envelope, WorkerPort

__all__ = [
    "AccessRefused",
    "AggregatorPort",
    "Broker",
    "BrokerUnreachable",
    "Closed",
    "Delivery",
    "Envelope",
    "LeadershipLost",
    "MessageTooLarge",
    "TopologyMismatch",
    "WorkerPort",
]
