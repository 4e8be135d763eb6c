"""TLS, mutual TLS and certificates instead of passwords, against a server that asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from fluffle.broker.admin.node import Node
from fluffle.broker.errors import AccessRefused, BrokerUnreachable
from fluffle.broker.rabbitmq.address import completed, parameters_of, secrets_of
from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.broker.transport import Envelope
from fluffle.schemas import UserError
from tests.broker.conftest import PATIENCE_S
from tests.broker.tls import PASSWORD, SITE, Certificates, SecureNode

pytestmark = pytest.mark.rabbitmq

USER = f"{SITE}:{quote(PASSWORD, safe='')}"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def node(certificates: Certificates) -> Iterator[SecureNode]:
    with SecureNode(certificates) as node:
        node.add_user(SITE, PASSWORD, ".*", ".*", ".*")
        yield node


def says_why(url: str, timeout_s: float = 4.0) -> str:
    """What a person is told, in one line without the password."""
    broker = RabbitMQBroker(url, connect_timeout_s=timeout_s)
    with pytest.raises((AccessRefused, BrokerUnreachable)) as caught:
        broker.worker("w", 1).close()
    line = str(caught.value)
    assert "\n" not in line
    assert PASSWORD not in line
    return line


@pytest.mark.parametrize("user", [USER, SITE], ids=["password", "certificate"])
def test_messages_travel_over_mutual_tls_with_the_name_that_the_broker_vouches_for(
    node: SecureNode, certificates: Certificates, federation: str, user: str
) -> None:
    # Given an aggregator and a site over mutual TLS, who are known by a password or a certificate
    url = f"amqps://{user}@{node.address}/%2F?{certificates.query(cert='site')}"
    broker = RabbitMQBroker(url, federation)
    with closing(broker.aggregator()) as leader, closing(broker.worker(SITE, 1)) as site:
        assert leader.lead(PATIENCE_S)
        leader.consume(1)
        # When the site sends something
        site.submit(Envelope(b"hello", "client-update", "u1"))
        # Then it arrives in its name
        delivery = leader.receive(PATIENCE_S)
    assert delivery is not None
    assert (delivery.envelope.body, delivery.envelope.user_id) == (b"hello", SITE)


def test_a_certificate_of_another_name_does_not_speak_for_it(
    node: SecureNode, certificates: Certificates, federation: str
) -> None:
    query = certificates.query(cert="site")
    with closing(
        RabbitMQBroker(f"amqps://{SITE}@{node.address}/?{query}", federation).aggregator()
    ) as leader:
        assert leader.lead(PATIENCE_S)
        # When somebody with the certificate of one site says that it is another
        other = RabbitMQBroker(f"amqps://hospital-8@{node.address}/?{query}", federation)
        refused = pytest.raises(AccessRefused, match="by another name than we go by")
        # Then it is told, and nothing is sent
        with closing(other.worker("hospital-8", 1)) as port, refused:
            port.submit(Envelope(b"forged", "client-update", "u1"))


@pytest.mark.parametrize(
    ("ca", "cert", "says"),
    [
        ("other-ca.pem", "site", "signed by nobody that we trust"),
        (None, "site", "signed by nobody that we trust"),
        ("ca.pem", None, "wants a certificate of ours"),
        ("ca.pem", "stranger", "refuses the one it got"),
        ("ca.pem", "expired", "refuses the one it got: expired"),
    ],
)
def test_certificates_that_do_not_fit_are_told_apart(
    node: SecureNode, certificates: Certificates, ca: str | None, cert: str | None, says: str
) -> None:
    assert says in says_why(f"amqps://{USER}@{node.address}/%2F?{certificates.query(ca, cert)}")


def test_a_server_by_another_name_is_not_believed_unless_we_say_which(
    node: SecureNode, certificates: Certificates
) -> None:
    url = f"amqps://{USER}@127.0.0.1:{node.tls_port}/%2F?{certificates.query(cert='site')}"
    assert "is for another host name" in says_why(url)
    broker = RabbitMQBroker(f"{url}&server_name_indication=localhost")
    broker.worker("w", 1).close()


def test_an_expired_server_is_not_believed(certificates: Certificates) -> None:
    with SecureNode(certificates, "expired-server", mutual=False) as node:
        url = f"amqps://{USER}@{node.address}/%2F?{certificates.query()}"
        assert "has expired" in says_why(url)


def test_tls_and_none_do_not_meet(node: SecureNode, certificates: Certificates) -> None:
    assert "a port for TLS, perhaps" in says_why(f"amqp://{USER}@{node.address}/%2F")
    plain = f"amqps://{USER}@localhost:{node.tcp_port}/%2F?{certificates.query()}"
    assert "speaks no TLS" in says_why(plain)


def test_a_wrong_password_is_said_over_tls_too(
    node: SecureNode, certificates: Certificates
) -> None:
    url = f"amqps://{SITE}:wrong@{node.address}/%2F?{certificates.query(cert='site')}"
    assert f"refused user '{SITE}'" in says_why(url)


# ---- no server needed


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("amqps://site@host/", "no password for user 'site'"),
        ("amqp://site@host/?cacertfile=ca.pem", "begins with amqp://"),
        ("amqps://site:pw@host/?cacertfile=/none/ca.pem", "cannot read an authority's certificate"),
        ("amqps://site:pw@host/?certfile=/none/c.pem", "cannot use the certificate /none/c.pem"),
        ("amqps://site:pw@host/?keyfile=c.key", "of no use without its certificate"),
        ("amqps://site:pw@host/?unknown=1", "a parameter 'unknown': known are cacertfile"),
        ("amqps://site:pw@host/?heartbaet=5", "did you mean heartbeat?"),
        ("amqps://site:pw@host/?verify=verify_none", "always checked"),
        ("amqp://site:pw@host/?auth_mechanism=gssapi", "auth_mechanism is plain or external"),
        ("amqp://site:pw@host/?auth_mechanism=external", "needs a certificate of ours"),
        ("amqp://site:pw@host/?connection_timeout=soon", "no number of milliseconds"),
        ("amqp://site:pw@host/?heartbeat=soon", "is not like amqp://"),
        ("amqp://site:12/pw@host/v", "write them as %2F"),
        ("amqp://site:5672/pw@x@host/v", "write them as %2F"),
        ("amqp://site:1#pw@host/v", "write them as %2F"),
        ("amqp://site:1?pw=1@host/v", "write them as %2F"),
        ("amqp://site:[pw@host/v", "write them as %2F"),
        ("http://site:pw@host/", "is not like amqp://"),
        ("amqps://site:pw@host:port/", "is not like amqp://"),
    ],
)
def test_a_url_that_cannot_be_used_is_said_without_its_password(url: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parameters_of(url)
    assert says in str(caught.value)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("heartbeat=15", {"heartbeat": 15}),
        ("connection_timeout=5000", {"socket_timeout": 5, "stack_timeout": 5}),
        ("channel_max=64", {"channel_max": 64}),
        ("auth_mechanism=plain", {"host": "host"}),
        ("verify=verify_peer&fail_if_no_peer_cert=true", {"host": "host"}),
        ("blocked_connection_timeout=9", {"blocked_connection_timeout": 9}),
    ],
)
def test_parameters_of_rabbitmqs_uris_are_taken(query: str, found: dict[str, Any]) -> None:
    parameters = parameters_of(f"amqps://site:pw@host/v?{query}")
    assert {name: getattr(parameters, name) for name in found} == found
    assert parameters.credentials.password == "pw"


def test_an_address_of_ipv6_is_one() -> None:
    assert parameters_of("amqp://site:pw@[::1]:5673/v").host == "::1"


def test_an_encrypted_key_is_an_error_and_no_question(
    certificates: Certificates, tmp_path: Path
) -> None:
    # Given a site's key with a password on it
    plain = load_pem_private_key(certificates.file("site.key").read_bytes(), None)
    secret = BestAvailableEncryption(b"secret")
    key = tmp_path / "encrypted.key"
    key.write_bytes(plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    # Then nobody waits at a prompt
    with pytest.raises(UserError, match="the key of our certificate is encrypted"):
        parameters_of(f"amqps://site@host/?certfile={certificates.file('site.pem')}&keyfile={key}")


def test_what_is_kept_in_files_completes_a_url(tmp_path: Path) -> None:
    # Given a password in a file, as an editor leaves it, and certificates
    password = tmp_path / "password"
    password.write_text(f"{PASSWORD}\n")
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "site.pem", "site key.pem"))
    # When a URL is completed
    url = completed(f"amqps://{SITE}@host/v?heartbeat=5", ca, cert, key, password)
    # Then it names all of them, escaped, and the secret is in none
    assert url == (
        f"amqps://{SITE}@host/v?heartbeat=5&cacertfile={quote(str(ca), safe='')}"
        f"&certfile={quote(str(cert), safe='')}&keyfile={quote_plus(str(key))}"
        f"&password_file={quote(str(password), safe='')}"
    )
    assert secrets_of(url) == (ca, cert, key, password)
    assert parameters_of(f"amqp://{SITE}@host?password_file={password}").credentials.password == (
        PASSWORD
    )
    # And a password that is there already stays
    assert completed("amqp://a:b@host", None, None, None, password) == "amqp://a:b@host"


def test_a_password_file_that_is_not_there_or_for_nobody_is_said(tmp_path: Path) -> None:
    none = tmp_path / "none"
    with pytest.raises(UserError, match="cannot read the password from"):
        completed("amqp://site@host", None, None, None, none)
    with pytest.raises(UserError, match="needs a user"):
        completed("amqp://host", None, None, None, none)


def test_a_node_of_our_own_needs_none_of_this(rabbitmq: Node) -> None:
    parameters = parameters_of(rabbitmq.url)
    assert parameters.ssl_options is None
    assert parameters.credentials.username == "fluffle"
    assert parameters.virtual_host == "/"
