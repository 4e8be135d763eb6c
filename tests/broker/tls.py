"""Certificates made for a test, and a server that asks for them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import trustme

from fluffle.broker.admin.node import Node, free_tcp_ports

#: A user's name, and his password with what a URL has to escape.
SITE, PASSWORD = "hospital-7", "s3cret/@:?#%7"
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


class Certificates:
    """Two authorities, of which the server trusts one, and certificates by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ours, others = trustme.CA(), trustme.CA()
        ours.cert_pem.write_to_path(str(self.file("ca.pem")))
        others.cert_pem.write_to_path(str(self.file("other-ca.pem")))
        self._issue(ours, "server", "localhost")
        self._issue(ours, "site", SITE)
        self._issue(ours, "expired", SITE, not_after=YESTERDAY)
        self._issue(ours, "expired-server", "localhost", not_after=YESTERDAY)
        self._issue(others, "stranger", SITE)

    def file(self, name: str) -> Path:
        return self.folder / name

    def query(self, ca: str | None = "ca.pem", cert: str | None = None) -> str:
        """Parameters of a broker's URL."""
        files = {"cacertfile": ca and self.file(ca)}
        files |= {"certfile": cert and self.file(f"{cert}.pem")}
        files |= {"keyfile": cert and self.file(f"{cert}.key")}
        return urlencode({key: str(path) for key, path in files.items() if path})

    def _issue(self, authority: trustme.CA, name: str, who: str, **more: object) -> None:
        made = authority.issue_cert(who, common_name=who, **more)  # type: ignore[arg-type]
        made.private_key_pem.write_to_path(str(self.file(f"{name}.key")))
        chain = b"".join(one.bytes() for one in made.cert_chain_pems)
        self.file(f"{name}.pem").write_bytes(chain)


class SecureNode(Node):
    """A server with a TLS port, which wants a certificate of whoever comes."""

    def __init__(self, certificates: Certificates, server: str = "server", mutual: bool = True):
        (self.tls_port,) = free_tcp_ports(1)
        files = {
            "ssl_options.cacertfile": certificates.file("ca.pem"),
            "ssl_options.certfile": certificates.file(f"{server}.pem"),
            "ssl_options.keyfile": certificates.file(f"{server}.key"),
        }
        super().__init__(
            settings={
                "listeners.ssl.default": f"127.0.0.1:{self.tls_port}",
                **{key: str(path) for key, path in files.items()},
                "ssl_options.verify": "verify_peer",
                "ssl_options.fail_if_no_peer_cert": str(mutual).lower(),
                "auth_mechanisms.1": "PLAIN",
                "auth_mechanisms.2": "EXTERNAL",
                "ssl_cert_login_from": "common_name",
            },
            plugins=["rabbitmq_auth_mechanism_ssl"],
        )

    @property
    def address(self) -> str:
        return f"localhost:{self.tls_port}"

    def add_user(self, name: str, password: str, *rights: str) -> None:
        """rights: configure, write, read."""
        self.ctl("add_user", name, password)
        self.ctl("set_permissions", name, *rights)
