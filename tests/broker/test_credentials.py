"""Passwords and certificates that change under a connection, and users that are put out."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pika
import pytest

from fluffle.broker import Envelope
from fluffle.broker.admin.node import Node
from fluffle.broker.rabbitmq.address import completed
from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.broker.rabbitmq.connection import refused_backoff
from fluffle.broker.rabbitmq.credentials import Credentials, Refusals
from fluffle.broker.rabbitmq.port import Settings
from fluffle.broker.topology import Topology
from fluffle.schemas import UserError
from tests.broker.conftest import PATIENCE_S, Ports


def test_a_file_is_read_again_when_it_has_changed_and_only_then(tmp_path: Path) -> None:
    # Given credentials in a file
    file, read = tmp_path / "password", []
    file.write_text("first")

    def look() -> pika.URLParameters:
        read.append(file.read_text())
        return pika.URLParameters("amqp://host")

    credentials = Credentials(look, [file])
    credentials.current()
    assert read == ["first"]
    # When it is replaced, as rotations do
    new = tmp_path / "new"
    new.write_text("second")
    new.replace(file)
    # Then it is read once more
    assert credentials.changed()
    credentials.current()
    credentials.current()
    assert read == ["first", "second"]
    assert not credentials.changed()


def test_a_password_file_that_goes_is_said_and_looked_for(tmp_path: Path) -> None:
    # Given a connection's credentials
    file = tmp_path / "password"
    file.write_text("word\n")
    url = completed("amqp://site@host/%2F", None, None, None, file)
    (credentials,) = Settings(url, Topology(), None, 1.0, 20).credentials("test")
    # When the file is away for a moment
    file.unlink()
    with pytest.raises(UserError, match="cannot read the password from"):
        credentials.current()
    # Then it is well again once it is there
    file.write_text("another\n")
    assert credentials.current().credentials.password == "another"


def test_what_is_refused_is_said_once_until_one_is_let_in(said: list[str]) -> None:
    refusals = Refusals()
    for _ in range(3):
        refusals.say("refused user 'site'")
    assert len(said) == 1
    refusals.over()
    refusals.say("refused user 'site'")
    assert len(said) == 2


def test_who_is_refused_for_an_hour_tries_a_dozen_times() -> None:
    backoff = refused_backoff()
    assert sum(backoff.next() for _ in range(14)) > 3600


@pytest.mark.rabbitmq
def test_a_password_that_is_changed_under_a_site_restarts_nobody(
    rabbitmq: Node,
    federation: str,
    ports: Ports,
    tmp_path: Path,
    said: list[str],
    until: Callable[[Callable[[], bool]], None],
) -> None:
    # Given a site at work, whose password is in a file
    name, file = f"site-{secrets.token_hex(3)}", tmp_path / "password"
    file.write_text("first\n")
    rabbitmq.ctl("add_user", name, "first")
    rabbitmq.ctl("set_permissions", name, ".*", ".*", ".*")
    where = f"amqp://{name}@127.0.0.1:{rabbitmq.tcp_port}/%2F"
    url = completed(where, None, None, None, file)
    leader = ports.leader(RabbitMQBroker(rabbitmq.url, federation))
    leader.consume(1)
    with closing(RabbitMQBroker(url, federation).worker(name, 0)) as site:
        # When its password is changed at the broker, and its connections end
        rabbitmq.ctl("change_password", name, "second")
        rabbitmq.ctl("close_all_user_connections", name, "rotated")
        # Then it says in words that it is refused, once for both connections
        until(lambda: any("refused user" in line for line in said))
        # And goes on as soon as the file has the new one
        file.write_text("second\n")
        site.submit(Envelope(b"hello", "client-update", "u1"))
        delivery = leader.receive(PATIENCE_S)
    assert delivery is not None
    assert delivery.envelope.user_id == name
    assert len([line for line in said if "refused user" in line]) == 1
    rabbitmq.ctl("delete_user", name)
