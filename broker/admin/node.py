"""A private RabbitMQ server: a plain child process with ports, a folder and a name of its own.

Several run side by side, as any user. A server ends with the process that started it, whatever ends
that: a shell holds the reading end of a pipe, and when the writing end closes, it kills its whole
process group, the server, itself and epmd (Erlang's name service, one for each node) included.

Other users of the machine are kept out: all of it listens on the loopback interface only, user,
password and Erlang's cookie are drawn, the folder is ours alone, and there is no ``guest``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pika

from fluffle.broker.errors import BrokerUnreachable
from fluffle.schemas.errors import UserError

#: The only user of a private node.
USER = "fluffle"
CONF = Path(__file__).with_name("rabbitmq.conf")

#: Where packages put the plain scripts. Debian's /usr/sbin/rabbitmq-server is a wrapper that
#: changes user and folder, so PATH comes last.
_SCRIPTS = ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")

#: "$1" is the server's script, "$2" a temporary folder or nothing. Descriptor 3: a shell gives its
#: background jobs no stdin.
_WATCH = """
exec 3<&0
epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 3<&- &
"$1" 3<&- &
server=$!
trap 'kill -TERM $server' TERM
{ read -r _ <&3; [ -z "$2" ] || rm -rf "$2"; kill -KILL 0; } &
wait $server
wait $server
kill -KILL 0
"""


def find_server() -> Path:
    """The folder of RabbitMQ's scripts. Raises: UserError where the machine has none."""
    on_path = shutil.which("rabbitmq-server")
    for folder in (*_SCRIPTS, *([os.path.dirname(on_path)] if on_path else [])):
        if os.access(os.path.join(folder, "rabbitmq-server"), os.X_OK):
            return Path(folder)
    raise UserError(
        "no RabbitMQ server on this machine: install one (Debian and Ubuntu: apt-get install "
        "rabbitmq-server; macOS: brew install rabbitmq), or give the URL of one that runs"
    )


class Node:
    """One server; a context manager that starts and stops it."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        plugins: Sequence[str] = (),
        management: bool = False,
        start_timeout_s: float = 90.0,
    ) -> None:
        """
        folder: keeps the data from one start to the next. Default: a temporary one.
        settings: lines of rabbitmq.conf that replace or follow our own.
        plugins: of RabbitMQ's own, by name.
        management: with RabbitMQ's UI at ``management_url`` (a few seconds slower to start).
        Raises: UserError where the machine has no server.
        """
        self._scripts = find_server()
        self._temporary = folder is None
        # Absolute: the server's own folder is another.
        self.folder = (folder or Path(tempfile.mkdtemp(prefix="fluffle-rabbitmq-"))).resolve()
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self.tcp_port, self._dist_port, self._epmd_port, self._ui_port = free_tcp_ports(4)
        lines = dict(
            line.split(" = ", 1) for line in CONF.read_text().splitlines() if " = " in line
        )
        if management:
            ui = {"port": str(self._ui_port), "ip": "127.0.0.1"}
            lines |= {f"management.tcp.{key}": value for key, value in ui.items()}
        lines |= settings or {}
        for name in (".", "data", "log"):
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        # Data of an earlier Fluffle has a guest, who goes.
        self._has_guest = (
            any((self.folder / "data").iterdir()) and not (self.folder / "password").exists()
        )
        self._password = _drawn(self.folder / "password")
        _drawn(self.folder / ".erlang.cookie")
        lines |= {"default_user": USER, "default_pass": self._password}
        conf = "".join(f"{key} = {value}\n" for key, value in lines.items())
        _write(self.folder / "rabbitmq.conf", conf)
        enabled = [*plugins, *(["rabbitmq_management"] if management else [])]
        (self.folder / "enabled_plugins").write_text(f"[{','.join(enabled)}].\n")
        (self.folder / "rabbitmq-env.conf").write_text("")

    @property
    def url(self) -> str:
        """For ``RabbitMQBroker``; it has the password in it."""
        return f"amqp://{USER}:{self._password}@127.0.0.1:{self.tcp_port}/%2F"

    @property
    def management_url(self) -> str:
        """RabbitMQ's UI, with ``management=True``; user and password are those in ``url``."""
        return f"http://127.0.0.1:{self._ui_port}"

    def start(self) -> None:
        """Start the server on its folder and return when it answers.

        Raises: BrokerUnreachable where it ends or keeps silent.
        """
        log = self.folder / "log" / "console.log"
        remove = str(self.folder) if self._temporary else ""
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _WATCH, "sh", str(self._scripts / "rabbitmq-server"), remove],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                cwd=self.folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + self._start_timeout_s
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise BrokerUnreachable(self._why_not(log))
            if self._has_guest and self._listens():
                self._replace_guest()
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server in good order and remove a temporary folder. May be called twice."""
        if self._process is not None and not self._temporary:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):  # kill() ends it then
                self._process.wait(30)
        self.kill()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def signal(self, number: int) -> None:
        """Send this to the server and all that belongs to it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL, as a power cut would; ``start`` goes on with what is in the folder."""
        self.signal(signal.SIGKILL)
        process, self._process = self._process, None
        if process is None:
            return
        process.wait()
        assert process.stdin is not None
        process.stdin.close()

    def ctl(self, *arguments: str) -> str:
        """What ``rabbitmqctl`` with these arguments prints."""
        command = [str(self._scripts / "rabbitmqctl"), "--quiet", *arguments]
        return subprocess.run(
            command,
            env=self._environment(),
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RABBITMQ_")}
        return inherited | {
            "HOME": str(self.folder),  # Erlang's cookie lies there
            # What nodes and rabbitmqctl say to each other: for who is on this machine.
            "ERL_AFLAGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": "fluffle@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.tcp_port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
        }

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.tcp_port), 0.2).close()
        except OSError:
            return False
        return True

    def _replace_guest(self) -> None:
        # By a file: others of this machine could read a command line.
        user = {"name": USER, "password": self._password, "tags": ["administrator"]}
        everything = dict.fromkeys(("configure", "write", "read"), ".*")
        rights = {"user": USER, "vhost": "/", **everything}
        definitions = self.folder / "definitions.json"
        _write(definitions, json.dumps({"users": [user], "permissions": [rights]}))
        self.ctl("import_definitions", str(definitions))
        definitions.unlink()
        self.ctl("delete_user", "guest")
        self._has_guest = False

    def _why_not(self, log: Path) -> str:
        said = log.read_text(errors="replace") if log.exists() else ""
        if "required feature flag" in said:
            return (
                f"the private RabbitMQ did not start: the data in {self.folder} are of an older "
                "release, which this one does not read. Go on with the older one; or upgrade "
                f"through 3.13 (rabbitmqctl enable_feature_flag all); or delete {self.folder}: "
                "updates that wait in its queues are lost, and their turns are issued again"
            )
        return f"the private RabbitMQ did not start: see {log}"

    def _answers(self) -> bool:
        if not self._listens():
            return False
        try:
            pika.BlockingConnection(pika.URLParameters(self.url)).close()
        except (OSError, pika.exceptions.AMQPError):
            return False
        return True


def _drawn(file: Path) -> str:
    """A secret in a file that we alone can read, drawn once."""
    if not file.exists():
        _write(file, secrets.token_hex(24))
    return file.read_text().strip()


def _write(file: Path, text: str) -> None:
    """Into a file that nobody else could ever read."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)


def free_tcp_ports(count: int) -> list[int]:
    """TCP ports of this machine, below those that the kernel gives to outgoing connections."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports
