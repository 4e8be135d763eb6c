"""Three real RabbitMQ nodes on loopback that are one cluster."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fluffle.broker.admin.node import Node, find_server, free_tcp_ports

SIZE = 3
_FORMED_S = 90.0


class Member(Node):
    """A node of a cluster: Erlang's name service and cookie are everybody's."""

    def __init__(self, folder: Path, number: int, epmd_port: int) -> None:
        self.name = f"fluffle{number}@localhost"
        self._epmd = epmd_port
        peers = {
            f"cluster_formation.classic_config.nodes.{i}": f"fluffle{i}@localhost"
            for i in range(1, SIZE + 1)
        }
        discovery = {"cluster_formation.peer_discovery_backend": "classic_config"}
        super().__init__(folder, settings={**discovery, **peers}, start_timeout_s=180.0)

    def start_again(self) -> None:
        """Up, if it is not."""
        if self._process is None:
            self.start()

    def terminate(self) -> None:
        """Down in good order, as for an upgrade."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        self.kill()

    def _environment(self) -> dict[str, str]:
        own = {"RABBITMQ_NODENAME": self.name, "ERL_EPMD_PORT": str(self._epmd)}
        return {**super()._environment(), **own}


class Cluster:
    """Three nodes, which start and are killed one by one."""

    def __init__(self, folder: Path) -> None:
        (self._epmd_port,) = free_tcp_ports(1)
        self._epmd = subprocess.Popen(
            [
                shutil.which("epmd") or "epmd",
                "-port",
                str(self._epmd_port),
                "-address",
                "127.0.0.1",
            ],
            env={**os.environ, "ERL_EPMD_ADDRESS": "127.0.0.1"},
        )
        secret = secrets.token_hex(24)
        self.nodes = []
        for number in range(1, SIZE + 1):
            place = folder / f"node{number}"
            place.mkdir(mode=0o700)
            for name in (".erlang.cookie", "password"):
                (place / name).touch(mode=0o600)
                (place / name).write_text(secret)
            self.nodes.append(Member(place, number, self._epmd_port))

    @property
    def url(self) -> str:
        """All of them, in one URL."""
        hosts = ",".join(f"127.0.0.1:{node.tcp_port}" for node in self.nodes)
        first = self.nodes[0].url
        head, _, tail = first.rpartition(f"127.0.0.1:{self.nodes[0].tcp_port}")
        return f"{head}{hosts}{tail}"

    def start(self) -> None:
        """All at once: they wait for each other."""
        failures: list[BaseException] = []

        def begin(node: Node) -> None:
            try:
                node.start()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=begin, args=(node,)) for node in self.nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        deadline = time.monotonic() + _FORMED_S
        while self.running() < SIZE:
            assert time.monotonic() < deadline, "the three nodes did not become one cluster"
            time.sleep(0.5)

    def running(self) -> int:
        """How many nodes the first one that answers sees."""
        said = self.nodes[0].ctl("eval", "length(rabbit_nodes:list_running()).")
        return int(said.strip())

    def told(self) -> str:
        """Queues and bindings as each node that runs knows them: what a worker may lack."""
        running = [node for node in self.nodes if node._process is not None]
        asked = (
            ("list_queues", "name", "pid", "consumers", "messages"),
            ("list_bindings", "source_name", "destination_name"),
            # Where a node routes by a copy of its own, which may differ
            ("eval", "[{K, ets:info(K, size)} || K <- [rabbit_route, rabbit_queue]]."),
        )
        return "\n".join(node.ctl(*question) for node in running for question in asked)

    def leader_of(self, queue: str) -> Member:
        """The node whose replica of a quorum queue leads."""
        for node in self.nodes:
            with contextlib.suppress(subprocess.CalledProcessError):
                lines = node.ctl("list_queues", "name", "leader", "--no-table-headers")
                told = dict(line.split("\t") for line in lines.splitlines())
                return next(one for one in self.nodes if one.name == told[queue])
        raise AssertionError("no node answers")

    def whole(self) -> bool:
        """Every queue has a working replica on every node: another one may die."""
        try:
            said = self.nodes[0].ctl("list_queues", "name", "online", "--no-table-headers")
        except subprocess.CalledProcessError:
            return False
        replicas = [line.partition("\t")[2] for line in said.splitlines() if ".worker." not in line]
        return all(all(node.name in online for node in self.nodes) for online in replicas)

    def stop(self) -> None:
        """Nothing is left."""
        for node in self.nodes:
            node.kill()
        self._epmd.kill()
        self._epmd.wait()


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Three nodes that are up, in a folder that goes."""
    find_server()
    folder = Path(tempfile.mkdtemp(prefix="fluffle-cluster-"))
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
