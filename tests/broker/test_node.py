"""The private server: side by side with others, and never longer than who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request

import psutil
import pytest

from fluffle.broker import BrokerUnreachable
from fluffle.broker.admin.node import Node, find_server
from fluffle.schemas import UserError

pytestmark = pytest.mark.rabbitmq

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


def test_two_nodes_run_side_by_side_one_of_them_with_the_ui(rabbitmq, until):
    with Node(management=True) as other:
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
