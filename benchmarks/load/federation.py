"""A federation of real processes on a private node, watched, and what became of its updates."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psutil
from watch import Watch

from fluffle.broker.admin.node import Node

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))  # for what the chaos tests balance their journals with

from tests.chaos.processes.balance import Balance, balance_of  # noqa: E402

FLUFFLE = [sys.executable, "-m", "fluffle"]
#: Until the next thing happens, on a busy machine.
PATIENCE_S = 1200.0


class Federation:
    """An aggregator, workers, and the node between them."""

    def __init__(self, folder: Path, node: Node, watch: Watch, stack: ExitStack) -> None:
        """stack: ends what is left of the processes."""
        self.folder, self.node = folder, node
        self.out = folder / "out"
        self.journals: list[Path] = []
        self.members: dict[str, subprocess.Popen[bytes]] = {}
        self._watch, self._stack = watch, stack
        beam = next(
            child
            for child in psutil.Process().children(recursive=True)
            if child.name().startswith("beam")
        )
        watch.add("node", beam.pid)

    def lead(self, experiment: str) -> None:
        """Start an aggregator."""
        (self.folder / "experiment.toml").write_text(experiment)
        self._lead()

    def evaluate(self) -> None:
        """Start an evaluator."""
        self._start("evaluator", [*FLUFFLE, "evaluator", "--broker", self.node.url])

    def work(self, name: str, slots: int) -> None:
        """Start ``fluffle worker``, for the first time or again."""
        where = ["--broker", self.node.url, "--connect-timeout", str(PATIENCE_S)]
        what = ["worker", "--name", name, "--slots", str(slots), "--state", str(self.folder)]
        journal = ["--journal", str(self._journal(name))]
        self._start(name, [*FLUFFLE, *what, *journal, *where])

    def crowd(self, name: str, workers: int) -> None:
        """Start many workers in a process."""
        script = [sys.executable, str(HERE / "crowd.py")]
        what = [self.node.url, name, str(workers), str(self._journal(name))]
        self._start(name, [*script, *what])

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send this to a member."""
        self.members[name].send_signal(number)

    def log(self, name: str) -> str:
        """What a member has said, in all its lives."""
        return "".join(p.read_text(errors="replace") for p in self._logs(name))

    @property
    def version(self) -> int:
        """The newest in the ledger; -1 if there is none."""
        rows = self.ask("SELECT MAX(version) FROM versions")
        return -1 if not rows or rows[0][0] is None else int(rows[0][0])

    def count(self, what: str) -> int:
        """How many connections or queues there are on the node."""
        return len(self.node.ctl(f"list_{what}", "pid", "--no-table-headers").splitlines())

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """What the ledger answers."""
        try:
            uri = f"file:{self.out}/ledger.sqlite?mode=ro"
            with closing(sqlite3.connect(uri, uri=True)) as db:
                return db.execute(sql).fetchall()
        except sqlite3.Error:  # there is none yet
            return []

    def wait(self, true: Callable[[], bool], what: str) -> None:
        """Until this is so; ends the program where it is not, or where somebody has failed."""
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            for name, process in self.members.items():
                if process.poll():
                    sys.exit(f"{name} has failed:\n{self.log(name)[-2000:]}")
            if time.monotonic() > deadline:
                sys.exit(f"waited {PATIENCE_S:.0f} s in vain for {what}")
            time.sleep(0.2)

    def wait_for(self, version: int) -> None:
        """Until this version has been made."""
        self.wait(lambda: self.version >= version, f"version {version}")

    def finish(self) -> dict[str, Any]:
        """Have the run end two versions on: the aggregator is told by being started again."""
        self.kill("aggregator", signal.SIGTERM)
        self.members["aggregator"].wait(PATIENCE_S)
        self._lead("--set", f"experiment.versions={self.version + 2}")
        return self.end()

    def end(self, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for the end of the run; its summary. Nobody is left."""
        code = self.members["aggregator"].wait(patience_s)
        if code:
            sys.exit(f"the aggregator has failed:\n{self.log('aggregator')[-2000:]}")
        for name, process in self.members.items():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:  # it came when the run was over, and waits
                process.terminate()
                process.wait(30)
            if process.returncode not in (0, -signal.SIGTERM):
                sys.exit(f"{name} left with {process.returncode}:\n{self.log(name)[-2000:]}")
        return dict(json.loads(self.log("aggregator").splitlines()[-1]))

    def account(self) -> Balance:
        """Say what became of every update; ends the program where one is lost or invented."""
        done = subprocess.run(
            [*FLUFFLE, "verify", str(self.out)], capture_output=True, text=True, check=False
        )
        print(f"verify: {done.stdout.strip() or done.stderr.strip()}", flush=True)
        balance = balance_of(self.out, self.journals, self.node)
        print(f"journals: {balance}", flush=True)
        problems = balance.problems(one_base=False)
        if done.returncode or problems:
            sys.exit("\n".join(["something is wrong", *problems[:5]]))
        return balance

    def _lead(self, *more: str) -> None:
        file = str(self.folder / "experiment.toml")
        where = ["--broker", self.node.url, "--out", str(self.out), "--json"]
        self._start("aggregator", [*FLUFFLE, "aggregator", file, *where, *more])

    def _journal(self, name: str) -> Path:
        path = self.folder / f"{name}.jsonl"
        if path not in self.journals:
            self.journals.append(path)
        return path

    def _logs(self, name: str) -> list[Path]:
        return sorted(self.folder.glob(f"{name}.*.log"))

    def _start(self, name: str, command: list[str]) -> None:
        life = len(self._logs(name))
        log = self._stack.enter_context((self.folder / f"{name}.{life:03d}.log").open("wb"))
        environment = {**os.environ, "FLUFFLE_TASK": str(HERE)}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        self.members[name] = process
        self._watch.add(f"{name} (life {life + 1})" if life else name, process.pid)
