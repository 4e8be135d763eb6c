"""``docker compose`` on the project's files: started, asked through RabbitMQ's API, taken down."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pika

ROOT = Path(__file__).parents[2]
#: Longer than anything here takes on a busy machine.
PATIENCE_S = 180.0


class Stack:
    """One project of ``docker compose``, with a run folder of its own."""

    def __init__(self, name: str, settings: Path) -> None:
        """settings: what a person's .env would be; written here."""
        self.name = name
        self.folder = ROOT / "runs" / name
        # Root tests what anybody else would do: a container that is not root's.
        self.uid, self.gid = (os.getuid(), os.getgid()) if os.getuid() else (1000, 1000)
        self._settings = settings
        self._ui_port, self._amqp_port, self.page_port = (_free_port() for _ in range(3))
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("FLUFFLE_")}
        if subprocess.run(["docker", "buildx", "version"], capture_output=True).returncode:
            self._environment["DOCKER_BUILDKIT"] = "0"
        self.folder.mkdir(parents=True)
        os.chown(self.folder, self.uid, self.gid)
        self.configure()

    def configure(self, **settings: object) -> None:
        """Write the settings; the next ``up`` sees them."""
        lines = {
            "EXPERIMENT": "tests/compose/experiment.toml",
            "RUN": self.name,
            "UID": self.uid,
            "GID": self.gid,
            "UI_PORT": self._ui_port,
            "AMQP_PORT": self._amqp_port,
            "DASHBOARD_PORT": self.page_port,
            "SETTINGS": self._settings,
            "WORKER_PASSWORD": "carrot",
            "EVALUATOR_PASSWORD": "lettuce",
            "AGGREGATOR_PASSWORD": "clover",
            **settings,
        }
        self._settings.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))

    def compose(self, *arguments: str, timeout_s: float = 420.0) -> str:
        """What ``docker compose`` prints; it has to end with code 0."""
        files = ["--file", "compose.yaml", "--file", "tests/compose/compose.test.yaml"]
        named = ["--project-name", self.name, "--env-file", str(self._settings)]
        return _run(["docker", "compose", *files, *named, *arguments], self._environment, timeout_s)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's running containers."""
        return self.compose("ps", "--quiet", service).split()

    def exit_codes(self) -> dict[str, int]:
        """Of all containers, by name."""
        lines = self.compose("ps", "--all", "--format", "json").splitlines()
        return {one["Name"]: one["ExitCode"] for one in map(json.loads, lines)}

    def left(self) -> str:
        """Containers, volumes and networks that Docker still has of this project."""
        label = ["--quiet", "--filter", f"label=com.docker.compose.project={self.name}"]
        kinds = (["ps", "--all"], ["volume", "ls"], ["network", "ls"])
        return "".join(_run(["docker", *kind, *label], self._environment) for kind in kinds)

    @cached_property
    def admin_password(self) -> str:
        """What was drawn for the UI, as the documentation says where it is."""
        return self.compose("exec", "-T", "rabbitmq", "cat", "/passwords/admin/password").strip()

    def api(self, path: str, user: str = "admin", password: str | None = None) -> Any:
        """What RabbitMQ's management API answers; %2F in ``path`` is the virtual host."""
        word = self.admin_password if password is None else password
        login = base64.b64encode(f"{user}:{word}".encode()).decode()
        url = f"http://127.0.0.1:{self._ui_port}/api/{path}"
        request = urllib.request.Request(url, headers={"Authorization": f"Basic {login}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def connect(self, user: str, password: str) -> pika.BlockingConnection:
        """A connection of this user."""
        credentials = pika.PlainCredentials(user, password)
        place = pika.ConnectionParameters("127.0.0.1", self._amqp_port, credentials=credentials)
        return pika.BlockingConnection(place)

    def mailboxes(self, role: str = "worker") -> list[str]:
        """The queues that workers (or the evaluator) have bound to the fanout exchange."""
        bindings = self.api("exchanges/%2F/fluffle.global-model/bindings/source")
        bound = [binding["destination"] for binding in bindings]
        return [name for name in bound if name.startswith(f"fluffle.worker.{role}-")]

    def query(self, sql: str, *values: object) -> list[Any]:
        """Rows of the run's ledger, which the aggregator writes meanwhile."""
        with sqlite3.connect(f"file:{self.folder / 'ledger.sqlite'}?mode=ro", uri=True) as db:
            return db.execute(sql, values).fetchall()

    def version(self) -> int:
        """The newest version; -1 where there is none."""
        if not (self.folder / "ledger.sqlite").exists():
            return -1
        try:
            newest = self.query("SELECT COALESCE(MAX(version), -1) FROM versions")
        except sqlite3.OperationalError:  # its tables are being made
            return -1
        return int(newest[0][0])

    def workers_since(self, version: int) -> set[str]:
        """Whose updates are counted in versions after this one."""
        return {name for (name,) in self.query(
            "SELECT DISTINCT worker FROM updates WHERE version > ?", version
        )}  # fmt: skip

    def wait_for(self, what: str, true: Callable[[], bool]) -> None:
        """Until it is true; shows what the containers said where it never is."""
        deadline = time.monotonic() + PATIENCE_S
        while not _holds(true):
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: never\n{self.compose('logs', '--tail', '20')}")
            time.sleep(0.5)

    def wait_for_versions(self, count: int) -> None:
        """Until the run is ``count`` versions further."""
        goal = self.version() + count
        self.wait_for(f"version {goal}", lambda: self.version() >= goal)

    def remove(self) -> None:
        """Everything, whatever state it is in."""
        self.compose("down", "--volumes", "--timeout", "1")
        shutil.rmtree(self.folder)


def _holds(true: Callable[[], bool]) -> bool:
    try:
        return true()
    except OSError:  # the broker is on its way
        return False


def _run(command: list[str], environment: Mapping[str, str], timeout_s: float = 60.0) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-5000:]}{done.stderr[-5000:]}"
    return done.stdout


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
