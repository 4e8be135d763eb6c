"""What docs/security.md tells a person to type does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pika
import pytest

from fluffle.broker.admin.node import Node, free_tcp_ports
from fluffle.broker.rabbitmq.address import parameters_of

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow, pytest.mark.timeout(900)]

DOC = Path(__file__).parents[2] / "docs" / "security.md"
HOST = "broker.example.org"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOC.read_text(), re.M | re.S)


def test_the_commands_set_up_a_federation_with_certificates(tmp_path: Path) -> None:
    # Given a person with the page, for whom localhost is the broker's host
    (port,) = free_tcp_ports(1)
    certificates, users, connect, without_password, put_out = (
        text.replace(f"@{HOST}", f"@localhost:{port}").replace(HOST, "localhost")
        for text in blocks("sh")
    )
    conf = "".join(blocks("ini")).replace(HOST, "localhost").replace("/etc/rabbitmq", f"{tmp_path}")
    lines = dict(line.split(" = ") for line in conf.splitlines())
    del lines["listeners.tcp"]  # our node is looked at over it
    lines["listeners.ssl.default"] = str(port)

    def sh(script: str, **environment: str) -> str:
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # When she makes certificates, starts the server and makes the users
    sh(certificates)
    node = Node(settings=lines, plugins=["rabbitmq_auth_mechanism_ssl"])
    commands = tmp_path / "bin"
    commands.mkdir()
    fluffle = commands / "fluffle"
    fluffle.write_text(f'#!/bin/sh\nexec {sys.executable} -m fluffle "$@"\n')
    fluffle.chmod(0o755)
    there = {
        **node._environment(),
        "COLUMNS": "300",
        "PATH": f"{commands}:{node._scripts}:{os.environ['PATH']}",
    }
    with node:
        sh(users, **there)
        # Then a site connects with its password, and then with its certificate alone
        assert "user hospital-7 may train" in " ".join(sh(connect, **there).split())
        known = "export FLUFFLE_TLS_CA=ca.pem FLUFFLE_TLS_CERT=hospital-7.pem"
        known += " FLUFFLE_TLS_KEY=hospital-7.key\n"
        found = sh(known + without_password, **there)
        assert "user hospital-7 may train" in " ".join(found.split())
        # And is put out at once
        query = "&".join(
            f"{name}={tmp_path / file}"
            for name, file in (
                ("cacertfile", "ca.pem"),
                ("certfile", "hospital-7.pem"),
                ("keyfile", "hospital-7.key"),
            )
        )
        url = f"amqps://hospital-7@localhost:{port}/%2F?{query}"
        connection = pika.BlockingConnection(parameters_of(url))
        sh(put_out, **there)
        with suppress(pika.exceptions.AMQPError):
            connection.process_data_events(30.0)
        assert connection.is_closed
        with pytest.raises(pika.exceptions.AMQPError):
            pika.BlockingConnection(parameters_of(url))
