"""The workers and the evaluator of a run: threads of this process, or processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Protocol

from fluffle.broker import Broker, Closed
from fluffle.schemas import UserError
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.evaluator import EvaluatorService
from fluffle.worker.services.worker import WorkerService
from fluffle.worker.training.runtime import ENGINE

#: Safe path: a ``worker.py`` where somebody starts a run is not ours.
_MODULE = ("-P", "-m", "fluffle")
#: How long processes may take to leave before they are killed.
LEAVE_S = 20.0


class WorkerGroup(Protocol):
    """Who trains and who evaluates."""

    def start(self) -> None:
        """Begin to work."""
        ...

    def check(self) -> None:
        """Raises: UserError where somebody has died who should be working."""
        ...

    def stop(self) -> None:
        """Let the trainings under way end, and leave."""
        ...


class Threads:
    """One worker with ``slots`` slots and one evaluator in this process."""

    def __init__(
        self,
        broker: Broker,
        slots: int,
        evaluates: bool,
        states: ClientStates,
    ) -> None:
        self._broker = broker
        self._slots = slots
        self._evaluates = evaluates
        self._states = states
        self._members: list[tuple[threading.Thread, WorkerService | EvaluatorService]] = []
        self._error: BaseException | None = None

    def start(self) -> None:
        """Begin to work."""
        from fluffle.worker.training.runtime import configure

        configure(self._slots)
        port = self._broker.worker("worker-0", self._slots)
        self._add(
            WorkerService(
                *(port, "worker-0", self._slots),
                states=self._states,
                simulate_devices=True,
            )
        )
        if self._evaluates:
            port = self._broker.worker("evaluator", 0)
            self._add(EvaluatorService(port, "evaluator"))

    def check(self) -> None:
        """Raises: UserError, or what a thread died of."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Let the trainings under way end."""
        for _, service in self._members:
            service.stop()
        for thread, _ in self._members:
            thread.join()
        self._states.close()

    def _add(self, service: WorkerService | EvaluatorService) -> None:
        def run() -> None:
            try:
                service.run()
            except Closed:
                pass
            except BaseException as error:
                self._error = error

        thread = threading.Thread(target=run, name=type(service).__name__, daemon=True)
        self._members.append((thread, service))
        thread.start()


class Processes:
    """``workers`` worker processes and one evaluator; what they say goes to files in ``logs``."""

    def __init__(
        self,
        url: str,
        federation: str,
        workers: int,
        slots: int,
        evaluates: bool,
        logs: Path,
        states: Path,
        engine: str,
    ) -> None:
        self._url = url
        self._engine = engine
        kept = ["--slots", str(slots), "--state", str(states.resolve()), "--simulate-devices"]
        names = [f"worker-{i}" for i in range(workers)]
        self._commands = {name: ["worker", "--name", name, *kept] for name in names}
        if evaluates:
            self._commands["evaluator"] = ["evaluator", "--name", "evaluator"]
        for command in self._commands.values():
            command += ["--federation", federation]
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Begin to work."""
        self._logs.mkdir(parents=True, exist_ok=True)
        # The URL may hold a password: an environment is less public than a command line.
        environment = {**os.environ, "FLUFFLE_BROKER": self._url, ENGINE: self._engine}
        for name, command in self._commands.items():
            with (self._logs / f"{name}.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    [sys.executable, *_MODULE, *command, "--parent", str(os.getpid())],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for the parent, which stops them in order
                )

    def check(self) -> None:
        """Raises: UserError where a process has failed."""
        for name, process in self._processes.items():
            if process.poll() not in (None, 0):
                raise UserError(
                    f"{name} has ended with code {process.returncode}: "
                    f"see {self._logs / name}.log; the same command resumes the run"
                )

    def stop(self) -> None:
        """Let the trainings under way end; kill who takes too long."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
