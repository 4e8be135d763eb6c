"""Users by the management API, one more site, another password; and operators who declare."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, urlsplit

import pika
import pytest
from typer.testing import CliRunner

from fluffle.broker import Envelope
from fluffle.broker.admin.definitions import SITE_LIMITS
from fluffle.broker.admin.management import Management
from fluffle.broker.admin.node import Node
from fluffle.broker.errors import AccessRefused, BrokerUnreachable
from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.broker.topology import REJECTED_TTL_S, Topology
from fluffle.commands.app import app
from fluffle.schemas import UserError
from tests.broker.conftest import PATIENCE_S, Ports

FREE_PORT = "http://admin:word@127.0.0.1:1"


def printed(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["broker", *words])
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node(management=True) as node:
        yield node


@pytest.fixture
def api(node: Node) -> str:
    """The URL of the management API, administrator included."""
    who = urlsplit(node.url).netloc.rpartition("@")[0]
    return node.management_url.replace("://", f"://{who}@")


def url_of(node: Node, passwords: Path, user: str) -> str:
    word = quote((passwords / user).read_text().strip(), safe="")
    return f"amqp://{user}:{word}@127.0.0.1:{node.tcp_port}/%2F"


@pytest.mark.rabbitmq
def test_a_site_is_added_its_password_redrawn_and_put_out_where_rabbitmqctl_is_out_of_reach(
    node: Node, api: str, federation: str, tmp_path: Path
) -> None:
    # Given a federation whose users were made by the API
    passwords, names = tmp_path / "passwords", ["--no-pool", "--federation", federation]
    make = ["users", str(passwords), *names, "--site", "hospital-7"]
    printed(*make, "--api", api)
    with closing(
        RabbitMQBroker(url_of(node, passwords, "aggregator"), federation).aggregator()
    ) as leader:
        assert leader.lead(PATIENCE_S)
        leader.consume(1)
        before = {user: (passwords / user).read_text() for user in ("aggregator", "hospital-7")}
        # When a site is added, and another's password redrawn, while it leads
        printed(*make, "--site", "hospital-8", "--redraw", "hospital-7", "--api", api)
        # Then the leader's is as it was, both sites are let in, held to their limits
        assert (passwords / "aggregator").read_text() == before["aggregator"]
        assert (passwords / "hospital-7").read_text() != before["hospital-7"]
        for site in ("hospital-7", "hospital-8"):
            with closing(
                RabbitMQBroker(url_of(node, passwords, site), federation).worker(site, 0)
            ) as port:
                port.submit(Envelope(b"hello", "client-update", site))
                delivery = leader.receive(PATIENCE_S)
                assert delivery is not None
                assert delivery.envelope.user_id == site
                leader.ack([delivery])
            (limits,) = Management(api).read(f"user-limits/{site}")
            assert limits["value"] == SITE_LIMITS
    # When the same is said to rabbitmqctl
    script = printed(*make).split("set_permissions")[0].rpartition("rabbitmqctl")[0]
    here = node._environment()
    here["PATH"] = f"{node._scripts}:{here['PATH']}"
    subprocess.run(["sh", "-e"], input=script, env=here, check=True, text=True)
    # Then users that are there are none the worse
    RabbitMQBroker(url_of(node, passwords, "aggregator"), federation).aggregator().close()
    # And who is put out is out
    url = url_of(node, passwords, "hospital-7")
    removed = printed("remove", "hospital-7", "--passwords", str(passwords), "--api", api)
    assert "hospital-7 is removed" in removed
    assert not (passwords / "hospital-7").exists()
    with pytest.raises(AccessRefused, match="refused user 'hospital-7'"):
        RabbitMQBroker(url, federation).worker("hospital-7", 0)
    assert "not there" in printed("remove", "hospital-7", "--api", api)
    with pytest.raises(AccessRefused, match=r"management API at \S+ refused user"):
        Management(url_of(node, passwords, "hospital-8").replace("amqp", "http").replace(
            f":{node.tcp_port}/%2F", f":{urlsplit(api).port}"
        )).read("users")  # fmt: skip


@pytest.mark.rabbitmq
def test_an_aggregator_takes_what_the_operators_have_declared(
    node: Node,
    federation: str,
    model: Callable[..., Envelope],
    ports: Ports,
    tmp_path: Path,
    said: list[str],
) -> None:
    # Given a broker whose operators load definitions, and give nobody the right to declare
    passwords, file = tmp_path / "passwords", tmp_path / "definitions.json"
    words = ["definitions", str(file), str(passwords), "--declared", "--federation", federation]
    printed(*words, "--no-pool", "--site", "lab-1")
    node.ctl("import_definitions", str(file))
    # When an aggregator leads and a site sends
    leader = ports.aggregator(RabbitMQBroker(url_of(node, passwords, "aggregator"), federation))
    assert leader.lead(PATIENCE_S)
    site = ports.worker(RabbitMQBroker(url_of(node, passwords, "lab-1"), federation), "lab-1", 0)
    leader.publish_model(model(1))
    leader.consume(1)
    site.submit(Envelope(b"hello", "client-update", "u1"))
    # Then everything works as ever
    assert site.wait_model(None, PATIENCE_S) is not None
    delivery = leader.receive(PATIENCE_S)
    assert delivery is not None
    leader.reject(delivery, "forged")
    with closing(pika.BlockingConnection(pika.URLParameters(node.url))) as connection:
        rejected = Topology(federation).rejected.name
        _, properties, _ = connection.channel().basic_get(rejected, auto_ack=True)
        assert properties.expiration == str(int(REJECTED_TTL_S * 1000))  # not for ever
    assert leader.latest_model() is not None
    assert leader.purge_assignments() == 0
    assert any("takes those that the operators made" in line for line in said)
    # And where they have not, it says so
    rest = Topology(f"{federation}-2").aggregator.name
    node.ctl("set_permissions", "aggregator", f"^{rest}$", ".*", ".*")
    other = ports.aggregator(
        RabbitMQBroker(url_of(node, passwords, "aggregator"), f"{federation}-2")
    )
    with pytest.raises(AccessRefused, match="fluffle broker definitions --declared"):
        other.lead(PATIENCE_S)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["users", "pw", "--api", "ftp://admin@host"], "--api is not like https://"),
        (["users", "pw", "--api", "http://admin@host:15672"], "no password for 'admin'"),
        (["users", "pw", "--redraw", "nobody"], "--redraw nobody: it is none of aggregator"),
        (["remove", "a b"], "is no name for a site"),
    ],
)
def test_what_cannot_be_done_is_said_first(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        CliRunner().invoke(app, ["broker", *words], catch_exceptions=False)


def test_an_api_that_is_not_there_is_told_in_one_line() -> None:
    with pytest.raises(BrokerUnreachable, match="rabbitmq-plugins enable"):
        Management(FREE_PORT).read("users")
