"""What each role must not do, tried over a real connection."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker, ProbableAuthenticationError

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]

REFUSED, LOCKED, FORGED = 403, 405, 406
MINE = "fluffle.worker.worker-mine.1"

PASSWORDS = {"worker": "carrot", "evaluator": "lettuce", "aggregator": "clover"}

Action = Callable[[pika.adapters.blocking_connection.BlockingChannel], object]


def publish(exchange: str, key: str = "", user: str = "worker") -> Action:
    """A publish that waits for the broker's answer."""

    def act(channel):
        channel.confirm_delivery()
        channel.basic_publish(exchange, key, b"evil", pika.BasicProperties(user_id=user))

    return act


def bind_mine(exchange: str) -> Action:
    """Listen to an exchange with a queue of one's own."""

    def act(channel):
        channel.queue_declare(MINE, exclusive=True)
        channel.queue_bind(MINE, exchange, "updates")

    return act


def attempt(stack, user: str, action: Action) -> int | None:
    """The code that the broker refuses this with; None where it lets it happen."""
    with closing(stack.connect(user, PASSWORDS.get(user) or stack.admin_password)) as connection:
        try:
            action(connection.channel())
        except ChannelClosedByBroker as error:
            return error.reply_code
    return None


FORBIDDEN_TO_WORKERS: dict[str, Action] = {
    "publish a model": publish("fluffle.global-model"),
    "publish to the default exchange": publish("", "fluffle.updates"),
    "write to assignments past their exchange": publish("", "fluffle.assignments"),
    "write to the rejected past their exchange": publish("", "fluffle.updates.rejected"),
    "hand out turns": publish("fluffle.assign", "assignments"),
    "reject": publish("fluffle.dead-letter", "rejected"),
    "use RabbitMQ's own exchanges": publish("amq.topic", "updates"),
    "bind updates elsewhere": lambda c: c.queue_bind("fluffle.updates", "fluffle.global-model"),
    "unbind updates": lambda c: c.queue_unbind("fluffle.updates", "fluffle.submit", "updates"),
    "listen to updates": bind_mine("fluffle.submit"),
    "listen to turns": bind_mine("fluffle.assign"),
    "listen to the rejected": bind_mine("fluffle.dead-letter"),
    "read updates": lambda c: c.basic_get("fluffle.updates"),
    "read events": lambda c: c.basic_get("fluffle.events"),
    "read the rejected": lambda c: c.basic_get("fluffle.updates.rejected"),
    "purge updates": lambda c: c.queue_purge("fluffle.updates"),
    "purge the rejected": lambda c: c.queue_purge("fluffle.updates.rejected"),
    "delete updates": lambda c: c.queue_delete("fluffle.updates"),
    "delete assignments": lambda c: c.queue_delete("fluffle.assignments"),
    "delete the store of models": lambda c: c.queue_delete("fluffle.latest-model"),
    "delete the fanout exchange": lambda c: c.exchange_delete("fluffle.global-model"),
    "take the lead": lambda c: c.basic_consume("fluffle.aggregator", print),
    "declare a queue of another name": lambda c: c.queue_declare("mine"),
    "declare an exchange of another name": lambda c: c.exchange_declare("mine"),
    "declare the evaluator's mailbox": lambda c: c.queue_declare("fluffle.worker.evaluator-x.1"),
}


@pytest.mark.parametrize("what", FORBIDDEN_TO_WORKERS)
def test_a_worker_may_not(stack, what):
    assert attempt(stack, "worker", FORBIDDEN_TO_WORKERS[what]) == REFUSED


def test_a_worker_may_say_something_as_itself_but_not_as_another(stack):
    assert attempt(stack, "worker", publish("fluffle.submit", "events")) is None
    assert attempt(stack, "worker", publish("fluffle.submit", "events", "evaluator")) == FORGED


def test_a_worker_may_not_touch_the_mailbox_of_another(stack):
    other = stack.mailboxes()[0]

    def route_to_it(channel):
        channel.exchange_declare(MINE)
        try:
            channel.queue_bind(other, MINE, "")
        finally:
            channel.connection.channel().exchange_delete(MINE)

    assert attempt(stack, "worker", publish("", other)) == REFUSED
    assert attempt(stack, "worker", route_to_it) == LOCKED
    assert attempt(stack, "worker", lambda c: c.basic_get(other)) == LOCKED
    assert attempt(stack, "worker", lambda c: c.queue_purge(other)) == LOCKED
    assert attempt(stack, "worker", lambda c: c.queue_delete(other)) == LOCKED
    assert attempt(stack, "worker", lambda c: c.queue_unbind(other, "fluffle.global-model")) == (
        LOCKED
    )
    assert other in stack.mailboxes()


def test_the_evaluator_takes_no_turns_and_publishes_no_models(stack):
    assert attempt(stack, "evaluator", lambda c: c.basic_get("fluffle.assignments")) == REFUSED
    assert attempt(stack, "evaluator", lambda c: c.queue_purge("fluffle.assignments")) == REFUSED
    model = publish("fluffle.global-model", user="evaluator")
    assert attempt(stack, "evaluator", model) == REFUSED


def test_the_aggregator_makes_no_updates_and_nobody_uses_the_default_exchange(stack):
    update = publish("fluffle.submit", "updates", "aggregator")
    assert attempt(stack, "aggregator", update) == REFUSED
    for user in ("aggregator", "evaluator", "admin"):
        assert attempt(stack, user, publish("", "fluffle.updates", user)) == REFUSED


def test_guest_is_not_let_in(stack):
    with pytest.raises(ProbableAuthenticationError):
        stack.connect("guest", "guest")
