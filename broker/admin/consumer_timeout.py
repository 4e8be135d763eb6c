"""RabbitMQ's consumer timeout: how long it leaves a message with whoever has taken it.

A turn that a worker trains for longer goes to another worker as well, which is for nothing. From
3.12 on our queue of turns says itself how long (``fluffle.broker.topology.TURN_TIMEOUT_S``); older
servers know their ``consumer_timeout`` only, 30 minutes unless rabbitmq.conf says otherwise, and
tell nobody what it is (https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout).
"""

from __future__ import annotations

import re

from fluffle.broker.topology import TURN_TIMEOUT_S
from fluffle.schemas import Experiment

#: RabbitMQ's own, in seconds, and that of rabbitmq.conf beside this file.
DEFAULT_S = 1800.0
#: The first version whose queues have timeouts of their own.
_OF_QUEUES = (3, 12)


def needed_s(experiment: Experiment) -> float:
    """The shortest timeout that lets every turn and every held update have its time, in seconds."""
    return max(_turn_s(experiment), experiment.aggregation.hold_s)


def setting(needed: float) -> str:
    """A value for ``consumer_timeout``: milliseconds, with a tenth to spare."""
    return str(round(max(DEFAULT_S, 1.1 * needed) * 1000))


def too_short(experiment: Experiment, version: str) -> str | None:
    """A warning where this experiment may outlast a server's timeout; None where it does not.

    version: the server's, "3.10.8"; what cannot be read counts as new.
    """
    turn, hold = _turn_s(experiment), experiment.aggregation.hold_s
    allowed = TURN_TIMEOUT_S if _version(version) >= _OF_QUEUES else DEFAULT_S
    if turn > allowed:
        key, what = "participation.assignment_deadline_s", "trained for longer goes to another too"
    elif hold > DEFAULT_S:
        key, what, allowed = "aggregation.hold_s", "held for longer is delivered again", DEFAULT_S
    else:
        return None
    held = turn if turn > allowed else hold
    return (
        f"{key} is {held:g} s, and RabbitMQ {version} takes back what is unacked for "
        f"{allowed:g} s unless it is told otherwise: what is {what}; its operators can set "
        f"consumer_timeout = {setting(needed_s(experiment))} in rabbitmq.conf"
    )


def _turn_s(experiment: Experiment) -> float:
    """Sites take no turns."""
    return experiment.longest_turn_s if experiment.task.clients else 0.0


def _version(text: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else _OF_QUEUES
