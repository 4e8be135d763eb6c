"""One channel of a link that opens again, after a pause, whenever the broker closes it.

After an acknowledgement timeout, a 404 or a 406 the broker closes a channel and pika says nothing
unless asked; a deleted queue only cancels its consumers. A robust channel notices both.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker

from fluffle.broker.errors import AccessRefused, TopologyMismatch
from fluffle.broker.rabbitmq.connection import Backoff, Link
from fluffle.broker.rabbitmq.explain import describe

#: Reply codes that close a channel.
ACCESS_REFUSED = 403
NOT_FOUND = 404
PRECONDITION_FAILED = 406


class Declares(Protocol):
    """Declares a topology, where it may."""

    def broken(self, channel: Channel, error: BaseException, link: Link, stood: bool) -> bool:
        """True where it knows what to do about a channel that the broker closed.

        stood: channels like this have worked before.
        """
        ...


class RobustChannel:
    """A channel that comes back. All methods run in the I/O thread."""

    def __init__(self, link: Link, declares: Declares | None = None) -> None:
        """What trying again cannot mend (rights, other arguments), the link's ``fail`` is told.

        declares: what a channel of this declares by, and what it makes of a refusal.
        """
        self.link = link
        self._declares = declares
        self.channel: Channel | None = None
        self.backoff = Backoff(most=2.0)
        self._wanted = False
        #: It has worked before.
        self._has_stood = False
        #: What was missing on the broker since then, as a person was told.
        self._missed: set[str] = set()

    def opened(self, channel: Channel) -> None:
        """Declare, consume, …; called for each new channel."""
        raise NotImplementedError

    def lost(self, error: BaseException) -> None:
        """What was on the channel is gone."""

    def broken(self, error: BaseException) -> bool:
        """True where it knows what to do about a channel that the broker closed."""
        return False

    def open(self) -> None:
        """Have a channel from now on."""
        self._wanted = True
        connection = self.link.connection
        if connection is not None and self.link.is_up and self.channel is None:
            self.channel = connection.channel(on_open_callback=self._opened)
            self.channel.add_on_close_callback(self._closed)

    def close(self) -> None:
        """Have none until it is opened again."""
        self._wanted = False
        self.restart()

    def restart(self) -> None:
        """Close the channel; where it is still wanted a new one follows after a pause."""
        if self.channel is not None and self.channel.is_open:
            self.channel.close()

    def miss(self, what: str) -> None:
        """This is not on the broker, and it is for others to make it; said once."""
        if what not in self._missed:
            self._missed.add(what)
            self.link.warn(what)

    def stands(self) -> None:
        """It works, and what was missing is there (again)."""
        self._has_stood = True
        if self._missed:
            self._missed.clear()
            self.link.inform("what was missing on the broker is there")

    def link_up(self) -> None:
        """As ``Attached``."""
        self.open()

    def _opened(self, channel: Channel) -> None:
        if not self._wanted:
            channel.close()
            return
        channel.add_on_cancel_callback(self._cancelled)
        self.opened(channel)

    def cancelled(self) -> None:
        """The broker has ended a subscription; the channel opens anew."""

    def _cancelled(self, _frame: Any) -> None:
        self.cancelled()
        self.link.warn(
            "the broker ended a subscription, starting it again (its queue was deleted, or a "
            "message was held for longer than consumer_timeout in its rabbitmq.conf)"
        )
        self.restart()

    def _closed(self, channel: Channel, error: BaseException) -> None:
        if channel is not self.channel:
            return
        self.channel = None
        self.lost(error)
        if not self.link.is_up or not self._wanted:
            return
        declares = self._declares
        known = declares is not None and declares.broken(channel, error, self.link, self._has_stood)
        if isinstance(error, ChannelClosedByBroker) and not known and not self.broken(error):
            fatal = _fatal(error)
            if fatal is not None:
                self.link.fail(fatal)
                return
            if error.reply_code == NOT_FOUND:
                self.miss(_what_is_missing(error, self._has_stood))
            else:
                self.link.warn(_explain(error))
        self.link.later(self.backoff.next(), self._reopen)

    def _reopen(self) -> None:
        if self._wanted:
            self.open()


def _fatal(error: ChannelClosedByBroker) -> Exception | None:
    if error.reply_code == ACCESS_REFUSED:
        return AccessRefused(f"RabbitMQ refused a right that is needed: {error.reply_text}")
    if error.reply_code == PRECONDITION_FAILED and "user_id property" in error.reply_text:
        return AccessRefused(
            f"RabbitMQ knows us by another name than we go by ({error.reply_text}): write the "
            "certificate's name into the broker's URL, amqps://NAME@host"
        )
    if error.reply_code == PRECONDITION_FAILED and "inequivalent arg" in error.reply_text:
        return TopologyMismatch(
            f"RabbitMQ has this already, with other arguments: {error.reply_text}; delete it "
            "there, or use another federation name"
        )
    return None


def _what_is_missing(error: ChannelClosedByBroker, has_been: bool) -> str:
    if not has_been:
        return "no aggregator has set this federation up yet, waiting for one"
    found = re.search(r"no (?:exchange|queue) '[^']*'", error.reply_text)
    what = found[0] if found else error.reply_text
    return f"there is {what} on the broker any more, trying again until there is"


def _explain(error: ChannelClosedByBroker) -> str:
    if "delivery acknowledgement" in error.reply_text:
        return (
            "a message was held for longer than the broker allows (consumer_timeout in its "
            "rabbitmq.conf) and is delivered again: raise it for trainings that take longer"
        )
    return f"the broker closed a channel ({describe(error)}), opening another"
