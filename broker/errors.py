"""Errors between us and a broker. A person can mend all but two: exit code 2."""

from fluffle.schemas.errors import UserError


class BrokerUnreachable(UserError):
    """No broker answered there, after visible retries."""


class AccessRefused(UserError):
    """The broker refused the credentials, the virtual host, or a right that we need."""


class MessageTooLarge(UserError):
    """The broker takes no message of this size; names the size and the setting."""


class TopologyMismatch(UserError):
    """A queue or exchange is there already with other arguments (406)."""


class LeadershipLost(Exception):
    """Another aggregator leads: this one must stop and commit nothing."""


class Closed(Exception):
    """This port was closed while waiting."""
