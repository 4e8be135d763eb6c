"""What ``fluffle broker users`` makes, run against a server: who may do what, tried."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker
from typer.testing import CliRunner

from fluffle.broker.admin.definitions import SITE_LIMITS
from fluffle.broker.admin.node import Node
from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.broker.topology import EVENTS, UPDATES, Topology
from fluffle.broker.transport import Envelope
from fluffle.commands.app import app
from tests.broker.conftest import PATIENCE_S

pytestmark = pytest.mark.rabbitmq

REFUSED, LOCKED, FORGED, NOT_IMPLEMENTED = 403, 405, 406, 540
SITES = ("hospital-7", "hospital-8")
NAMES = Topology("fluffle")
MINE = "fluffle.worker.hospital-7.evil"

Channel = pika.adapters.blocking_connection.BlockingChannel
Action = Callable[[Channel], object]


class Federation:
    """A server with the users that the command makes, and an aggregator that leads."""

    def __init__(self, node: Node, passwords: Path) -> None:
        self.node = node
        self.passwords = passwords
        self.leader = RabbitMQBroker(self.url("aggregator")).aggregator()
        assert self.leader.lead(PATIENCE_S)

    def url(self, user: str) -> str:
        word = (self.passwords / user).read_text().strip()
        return f"amqp://{user}:{word}@127.0.0.1:{self.node.tcp_port}/%2F"

    def connect(self, user: str) -> pika.BlockingConnection:
        return pika.BlockingConnection(pika.URLParameters(self.url(user)))

    def attempt(self, user: str, action: Action) -> int | None:
        """The code that the broker refuses this with; None where it lets it happen."""
        connection = self.connect(user)
        try:
            action(connection.channel())
        except (ChannelClosedByBroker, ConnectionClosedByBroker) as error:
            return int(error.reply_code)
        finally:
            if connection.is_open:
                connection.close()
        return None

    def queues(self, what: str = "name") -> list[str]:
        return self.node.ctl("list_queues", "--no-table-headers", what).splitlines()


def lines(passwords: Path, *arguments: str) -> str:
    """What the command prints."""
    return printed("users", str(passwords), *arguments)


def printed(*words: str) -> str:
    done = CliRunner().invoke(app, ["broker", *words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module", params=["users", "definitions"])
def federation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("users")
    passwords, file = folder / "passwords", folder / "definitions.json"
    sites = [part for site in SITES for part in ("--site", site)]
    with Node() as node:
        if request.param == "users":
            # As on the broker's machine: piped into sh, where rabbitmqctl is on the PATH
            here = node._environment()
            here["PATH"] = f"{node._scripts}:{here['PATH']}"
            script = lines(passwords, "--helper", *sites)
            subprocess.run(["sh", "-e"], input=script, env=here, check=True, text=True)
        else:
            printed("definitions", str(file), str(passwords), "--helper", *sites)
            node.ctl("import_definitions", str(file))
            for site in SITES:
                node.ctl("set_user_limits", site, json.dumps(SITE_LIMITS))
        made = Federation(node, passwords)
        made.leader.publish_model(model(1))
        yield made
        made.leader.close()


def model(version: int, body: bytes = b"model") -> Envelope:
    order = {"run_started": 1, "epoch": 1, "version": version, "attempt": 0}
    return Envelope(body, "global-model", "m", order)


def publish(exchange: str, key: str = "", user: str = "hospital-7") -> Action:
    """A publish that waits for the broker's answer."""

    def act(channel: Channel) -> None:
        channel.confirm_delivery()
        channel.basic_publish(exchange, key, b"evil", pika.BasicProperties(user_id=user))

    return act


def declare(**arguments: Any) -> Action:
    """A queue of one's own that hands what it drops on to somebody else."""
    return lambda channel: channel.queue_declare(MINE, exclusive=True, arguments=arguments)


def bind_mine(exchange: str, key: str) -> Action:
    def act(channel: Channel) -> None:
        channel.queue_declare(MINE, exclusive=True)
        channel.queue_bind(MINE, exchange, key)

    return act


def exchange_of_mine(**arguments: Any) -> Action:
    return lambda c: c.exchange_declare(MINE, "fanout", auto_delete=True, arguments=arguments)


FORBIDDEN: dict[str, Action] = {
    "publish a model": publish(NAMES.global_model),
    "hand out turns": publish(NAMES.assign, "assignments"),
    "reject what others sent": publish(NAMES.dead_letter, "rejected"),
    "write to a queue past its exchange": publish("", NAMES.updates.name),
    "write to a mailbox past its exchange": publish("", "fluffle.worker.hospital-8.1"),
    "use RabbitMQ's own exchanges": publish("amq.topic", "updates"),
    "take a turn": lambda c: c.basic_get(NAMES.assignments.name),
    "purge the turns": lambda c: c.queue_purge(NAMES.assignments.name),
    "delete the turns": lambda c: c.queue_delete(NAMES.assignments.name),
    "read updates": lambda c: c.basic_get(NAMES.updates.name),
    "purge updates": lambda c: c.queue_purge(NAMES.updates.name),
    "delete updates": lambda c: c.queue_delete(NAMES.updates.name),
    "read events": lambda c: c.basic_get(NAMES.events.name),
    "read what was rejected": lambda c: c.basic_get(NAMES.rejected.name),
    "delete what was rejected": lambda c: c.queue_delete(NAMES.rejected.name),
    "delete the store of models": lambda c: c.queue_delete(NAMES.latest_model.name),
    "delete the fanout exchange": lambda c: c.exchange_delete(NAMES.global_model),
    "delete where updates go": lambda c: c.exchange_delete(NAMES.submit),
    "listen to updates": bind_mine(NAMES.submit, "updates"),
    "listen to turns": bind_mine(NAMES.assign, "assignments"),
    "listen to the rejected": bind_mine(NAMES.dead_letter, "rejected"),
    "send models where updates go": lambda c: c.queue_bind(NAMES.updates.name, NAMES.global_model),
    "unbind updates": lambda c: c.queue_unbind(NAMES.updates.name, NAMES.submit, UPDATES),
    "let dead letters write for it": declare(**{"x-dead-letter-exchange": ""}),
    "let dead letters publish models": declare(**{"x-dead-letter-exchange": NAMES.global_model}),
    "let an alternate exchange write for it": exchange_of_mine(
        **{"alternate-exchange": NAMES.global_model}
    ),
    "feed models from an exchange of its own": lambda c: c.exchange_bind(
        NAMES.global_model, NAMES.submit
    ),
    "take the lead": lambda c: c.basic_consume(NAMES.aggregator.name, print),
    "make a mailbox for another": lambda c: c.queue_declare("fluffle.worker.hospital-8.1"),
    "make a mailbox for who is named like it": lambda c: c.queue_declare(f"{MINE[:-5]}1.evil"),
    "make a queue of any other name": lambda c: c.queue_declare("mine"),
    "make an exchange of any other name": lambda c: c.exchange_declare("mine"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_resident_site_may_not(federation: Federation, what: str) -> None:
    assert federation.attempt("hospital-7", FORBIDDEN[what]) == REFUSED


#: Publishes are tried below, under its own name.
OF_HELPER = [
    what for what in FORBIDDEN if not what.startswith(("publish", "hand", "reject", "write", "use"))
]


@pytest.mark.parametrize("what", OF_HELPER)
def test_a_helper_may_not(federation: Federation, what: str) -> None:
    assert federation.attempt("helper", FORBIDDEN[what]) == REFUSED


def test_a_helper_answers_its_aggregator_and_reaches_nothing_else(federation: Federation) -> None:
    # Given a helper that is there before anything was ever asked
    port = RabbitMQBroker(federation.url("helper")).helper()
    with closing(port):
        # When the aggregator asks
        federation.leader.ask_helper(Envelope(b"which masks?", "unmask-request"))
        asked = port.receive(PATIENCE_S)
        assert asked is not None
        assert asked.envelope.body == b"which masks?"
        port.answer(Envelope(b"these", "masks"))
        port.ack(asked)
        # Then it has the answer
        answer = federation.leader.receive_masks(PATIENCE_S)
        assert answer is not None
        assert (answer.body, answer.user_id) == (b"these", "helper")
    # And the helper publishes nowhere else, and nobody else where it does, or reads what it reads
    for exchange, key in ((NAMES.submit, "updates"), (NAMES.global_model, ""), ("", "x")):
        assert federation.attempt("helper", publish(exchange, key, user="helper")) == REFUSED
    for user in ("hospital-7", "worker", "evaluator"):
        assert federation.attempt(user, publish(NAMES.helper, "masks", user=user)) == REFUSED
        for queue in (NAMES.unmask, NAMES.masks):
            assert federation.attempt(user, lambda c, q=queue: c.basic_get(q.name)) == REFUSED
    assert federation.attempt("helper", lambda c: c.basic_get(NAMES.masks.name)) == REFUSED
    assert federation.attempt("aggregator", lambda c: c.basic_get(NAMES.unmask.name)) == REFUSED


def test_a_helper_does_not_go_with_a_topology_that_operators_declare(tmp_path: Path) -> None:
    words = ["definitions", str(tmp_path / "d.json"), str(tmp_path), "--declared", "--helper"]
    done = CliRunner().invoke(app, ["broker", *words])
    assert "--helper does not go with --declared" in str(done.exception)


def test_a_site_speaks_as_itself_and_as_nobody_else(federation: Federation) -> None:
    for key in (UPDATES, EVENTS):
        for name, answer in (("hospital-7", None), ("hospital-8", FORGED), ("aggregator", FORGED)):
            said = publish(NAMES.submit, key, user=name)
            assert federation.attempt("hospital-7", said) == answer


def test_a_site_does_not_touch_the_mailbox_of_another(federation: Federation) -> None:
    # Given a site with its mailbox
    port = RabbitMQBroker(federation.url("hospital-8")).worker("hospital-8", 0)
    with closing(port):
        assert port.wait_model(None, PATIENCE_S) is not None
        (mailbox,) = (q for q in federation.queues() if ".worker.hospital-8." in q)
        # When another site goes for it in every way
        for action in (
            lambda c: c.basic_get(mailbox),
            lambda c: c.basic_consume(mailbox, print),
            lambda c: c.queue_purge(mailbox),
            lambda c: c.queue_delete(mailbox),
            lambda c: c.queue_bind(mailbox, NAMES.global_model),
            lambda c: c.queue_unbind(mailbox, NAMES.global_model),
            publish("", mailbox),
        ):
            assert federation.attempt("hospital-7", action) in (REFUSED, LOCKED)
        # Then it is as it was
        assert mailbox in federation.queues()


def test_the_store_of_models_can_be_read_but_not_emptied(federation: Federation) -> None:
    purge = federation.attempt("hospital-7", lambda c: c.queue_purge(NAMES.latest_model.name))
    assert purge == NOT_IMPLEMENTED  # nobody empties a stream


def test_queues_that_a_site_leaves_behind_hold_one_model_each(federation: Federation) -> None:
    # Given a site that declares a queue that stays, and lets it have every model
    def hoard(channel: Channel) -> None:
        channel.queue_declare(MINE, durable=True)
        channel.queue_bind(MINE, NAMES.global_model)

    assert federation.attempt("hospital-7", hoard) is None
    # When models are published
    for version in range(2, 7):
        federation.leader.publish_model(model(version))
    # Then the broker's operator has said how many it keeps
    assert f"{MINE}\t1" in federation.node.ctl("list_queues", "name", "messages")
    federation.attempt("hospital-7", lambda c: c.queue_delete(MINE))


def test_a_stream_that_a_site_makes_for_itself_fills_no_disk(federation: Federation) -> None:
    # Given a site that declares a stream that is to keep everything, in one huge segment
    huge = {"x-max-length-bytes": 10**13, "x-stream-max-segment-size-bytes": 3 * 10**9}

    def hoard(channel: Channel) -> None:
        kept = {"x-queue-type": "stream", **huge}
        channel.queue_declare(MINE, durable=True, arguments=kept)
        channel.queue_bind(MINE, NAMES.global_model)

    assert federation.attempt("hospital-7", hoard) is None
    # When models are published
    for version in range(10, 70):
        federation.leader.publish_model(model(version, bytes(1024**2)))
    # Then the disk has a few of them
    folders = [p for p in federation.node.folder.rglob("*evil*") if p.is_dir()]
    assert folders
    kept = sum(p.stat().st_size for one in folders for p in one.rglob("*") if p.is_file())
    assert kept < 24 * 1024**2
    federation.attempt("hospital-7", lambda c: c.queue_delete(MINE))


def test_events_of_any_size_fill_no_disk(federation: Federation) -> None:
    # Given nobody who reads events just now
    # When a site sends fifty of a megabyte
    def flood(channel: Channel) -> None:
        channel.confirm_delivery()
        for _ in range(50):
            channel.basic_publish(NAMES.submit, EVENTS, bytes(1024**2))

    assert federation.attempt("hospital-7", flood) is None
    # Then the broker has kept the last few
    with closing(pika.BlockingConnection(pika.URLParameters(federation.node.url))) as connection:
        seen = connection.channel().queue_declare(NAMES.events.name, passive=True)
    assert 0 < seen.method.message_count <= 16


def test_a_site_has_no_more_connections_than_it_needs(federation: Federation) -> None:
    held = []
    with suppress(pika.exceptions.AMQPError):
        while len(held) < 9:
            held.append(federation.connect("hospital-7"))
    for connection in held:
        connection.close()
    assert len(held) == 4


def test_everybody_can_do_their_work(federation: Federation) -> None:
    # Given a worker of the pool, a site and an evaluator with the users that the command makes
    for user, name, slots in (("worker", "worker-1", 1), ("hospital-8", "hospital-8", 0),
                              ("evaluator", "evaluator-1", 0)):  # fmt: skip
        port = RabbitMQBroker(federation.url(user)).worker(name, slots)
        with closing(port):
            # Then each gets the model, and is heard
            assert port.wait_model(None, PATIENCE_S) is not None
            port.submit(Envelope(b"hello", "client-update", name))
            if slots:
                assert port.receive_assignment(0.2) is None


def test_passwords_are_drawn_once_for_ones_own_eyes_and_never_printed(tmp_path: Path) -> None:
    folder = tmp_path / "passwords"
    script = lines(folder, "--site", "hospital-7")
    words = {path.name: path.read_text().strip() for path in folder.iterdir()}
    assert set(words) == {"aggregator", "evaluator", "worker", "hospital-7"}
    assert len({*words.values()}) == 4
    assert not any(word in script for word in words.values())
    for path in (folder, *folder.iterdir()):
        assert not stat.S_IMODE(os.stat(path).st_mode) & 0o077
    assert lines(folder, "--site", "hospital-7") == script
    assert {path.name: path.read_text().strip() for path in folder.iterdir()} == words


@pytest.mark.parametrize("name", ["a.b", "", "worker", "a b", "x" * 65, "../x"])
def test_a_site_needs_a_name_that_rights_can_be_written_for(tmp_path: Path, name: str) -> None:
    done = CliRunner().invoke(app, ["broker", "users", str(tmp_path), "--site", name])
    assert "is no name for a site" in str(done.exception)


def test_definitions_have_no_password_and_take_what_the_environment_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a folder for the worker's password, as a volume is, and another one in the environment
    (tmp_path / "worker").mkdir()
    monkeypatch.setenv("EVALUATOR_PASSWORD", "lettuce")
    # When
    file = tmp_path / "definitions.json"
    said = printed("definitions", str(file), str(tmp_path), "--admin")
    # Then what was drawn is in its file alone, and what was given is kept
    words = [(tmp_path / name).read_text().strip() for name in ("worker/password", "evaluator")]
    assert words[1] == "lettuce"
    for word in words:
        assert word not in said + file.read_text()
    users = {user["name"]: user["tags"] for user in json.loads(file.read_text())["users"]}
    assert users == dict.fromkeys(("aggregator", "evaluator", "worker"), "") | {
        "admin": "administrator"
    }
