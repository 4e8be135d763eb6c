"""The private server: side by side with others, and never longer than who started it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import urllib.request
from urllib.parse import urlsplit

import pika
import psutil
import pytest

from fluffle.broker import BrokerUnreachable
from fluffle.broker.admin.node import USER, Node, find_server
from fluffle.schemas import UserError
from tests.urls import as_user

pytestmark = pytest.mark.rabbitmq

LOOPBACK = ("127.0.0.1", "::1")

PARENT = """
import time
from fluffle.broker.admin.node import Node
node = Node()
node.start()
print(node.tcp_port, flush=True)
time.sleep(600)
"""


def servers_on(port):
    """Server processes of one node, told by their environment's port."""
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            ours = process.environ().get("RABBITMQ_NODE_PORT") == str(port)
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def listening_beyond_loopback(tcp_port):
    """Where the processes of a node listen for others than this machine."""
    found = [c for p in servers_on(tcp_port) for c in p.net_connections("inet")]
    return [c.laddr for c in found if c.status == psutil.CONN_LISTEN and c.laddr.ip not in LOOPBACK]


def test_two_nodes_run_side_by_side_one_of_them_with_the_ui(rabbitmq, until):
    with Node(management=True) as other:
        assert listening_beyond_loopback(other.tcp_port) == []
        assert other.tcp_port != rabbitmq.tcp_port
        assert "fluffle" in other.ctl("cluster_status")
        with urllib.request.urlopen(other.management_url) as page:
            assert b"RabbitMQ" in page.read()
        folder = other.folder
        assert servers_on(other.tcp_port)
    until(lambda: not servers_on(other.tcp_port))
    assert not folder.exists()
    assert servers_on(rabbitmq.tcp_port)


def test_a_node_ends_with_its_parent_even_when_that_is_killed(until, tmp_path):
    # Given a process that has started a node
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with parent:
        port = int(parent.stdout.readline())
        assert servers_on(port)
        # When it is killed without a chance to say anything
        parent.send_signal(signal.SIGKILL)
    # Then nothing of the node is left, neither the name service nor the folder
    until(lambda: not servers_on(port))
    assert not list(tmp_path.iterdir())


def test_a_node_that_cannot_start_says_where_to_look(rabbitmq, tmp_path):
    node = Node(tmp_path, settings={"no_such_key": "1"})
    with pytest.raises(BrokerUnreachable, match=r"console\.log"):
        node.start()
    node.stop()
    assert tmp_path.exists()


def test_a_machine_without_a_server_hears_what_to_install(monkeypatch):
    monkeypatch.setattr("fluffle.broker.admin.node._SCRIPTS", ())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="apt-get install rabbitmq-server"):
        find_server()


def test_a_private_node_lets_nobody_else_in(rabbitmq, tmp_path):
    # Given a node in a folder that others may look into
    tmp_path.chmod(0o755)
    with Node(tmp_path / "node") as node:
        # Then there is no guest, and nobody else can read the password or the cookie
        with pytest.raises(pika.exceptions.AMQPError):
            pika.BlockingConnection(pika.URLParameters(as_user(node.url, "guest", "guest")))
        password = urlsplit(node.url).password
        assert len(password) == 48
        for path in (tmp_path / "node").rglob("*"):
            if path.is_file() and password.encode() in path.read_bytes():
                assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
        assert not stat.S_IMODE((tmp_path / "node").stat().st_mode) & 0o077
        cookie = tmp_path / "node" / ".erlang.cookie"
        assert not stat.S_IMODE(cookie.stat().st_mode) & 0o077
        assert len(cookie.read_text()) == 48
    # And it is the same after a restart
    with Node(tmp_path / "node") as node:
        assert urlsplit(node.url).password == password


def test_the_guest_of_an_earlier_version_is_gone(tmp_path):
    # Given the folder of a node from when there was a guest
    folder = tmp_path / "node"
    with Node(folder) as node:
        node.ctl("add_user", "guest", "guest")
        node.ctl("delete_user", USER)
    (folder / "password").unlink()
    # When it is started again
    with Node(folder) as node:
        # Then there is one user, with the password that was drawn
        listed = node.ctl("list_users", "--no-table-headers").splitlines()
        assert [line.split("\t")[0] for line in listed] == [USER]
        pika.BlockingConnection(pika.URLParameters(node.url)).close()


def test_data_of_an_older_release_are_named(rabbitmq, tmp_path):
    if rabbitmq.ctl("version").startswith("3.10"):
        pytest.skip("no release before 3.11 refuses older data")
    # Given a folder as a RabbitMQ 3.10 leaves it: without the feature flags that this one requires
    with Node(tmp_path):
        pass
    (flags,) = (tmp_path / "data").glob("*feature_flags")
    flags.write_text("[implicit_default_bindings,quorum_queue,stream_queue,user_limits].\n")
    # When it is started again, then the line says what there is to do
    node = Node(tmp_path)
    with pytest.raises(BrokerUnreachable, match=r"of an older release.*enable_feature_flag all"):
        node.start()
    node.stop()
