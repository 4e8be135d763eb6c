"""How long a federation is without a leader: from a SIGKILL, or a SIGSTOP, to the standby's work.

Prints the table of README.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from fluffle.broker.admin.node import Node

FLUFFLE = [sys.executable, "-m", "fluffle"]
PATIENCE_S = 180.0
#: A version a second or so, for ever.
EXPERIMENT = """
[experiment]
name = "standby"
versions = 1000000
[task]
name = "digits-lr"
clients = 4
[participation]
pause_s = [0.2, 0.4]
[evaluation]
every_updates = 0
"""


class Federation:
    """A worker and, at any time, a leader and a standby on one run folder."""

    def __init__(self, folder: Path, url: str, stack: ExitStack) -> None:
        self.out = folder / "out"
        self._file = folder / "experiment.toml"
        self._file.write_text(EXPERIMENT)
        self._folder, self._url, self._stack = folder, url, stack
        self._started = 0
        self.leader = self._aggregator()
        self._start("worker", "--slots", "2")
        self.wait(lambda: self.newest()[1] >= 2)
        self.standby = self._aggregator()

    def lose_leader(self, number: int) -> tuple[float, float]:
        """Seconds from this signal to the next epoch, and to the first version of it."""
        log = self._folder / f"{self._started - 1}.log"
        self.wait(lambda: "another aggregator leads" in log.read_text())
        before = self.newest()[0]
        os.kill(self.leader.pid, number)
        began = time.monotonic()
        self.wait(lambda: self.epoch() > before)
        led_s = time.monotonic() - began
        self.wait(lambda: self.newest()[0] > before)
        made_s = time.monotonic() - began
        os.kill(self.leader.pid, signal.SIGKILL)
        self.leader.wait()
        self.leader, self.standby = self.standby, self._aggregator()
        return led_s, made_s

    def epoch(self) -> int:
        """The epoch that has begun last."""
        return self._ask("SELECT value FROM meta WHERE key = 'epoch'")[0]

    def newest(self) -> tuple[int, int]:
        """Epoch and number of the newest version."""
        epoch, version = self._ask("SELECT epoch, version FROM versions ORDER BY version DESC")
        return epoch, version

    def wait(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            if time.monotonic() > deadline:
                sys.exit(f"nothing happened for {PATIENCE_S:.0f} s")
            time.sleep(0.01)

    def _ask(self, sql: str) -> tuple[int, ...]:
        try:
            uri = f"file:{self.out}/ledger.sqlite?mode=ro"
            with closing(sqlite3.connect(uri, uri=True)) as db:
                row = db.execute(sql).fetchone()
        except sqlite3.Error:  # there is none yet
            row = None
        return tuple(map(int, row)) if row else (0, -1)

    def _aggregator(self) -> subprocess.Popen[bytes]:
        return self._start("aggregator", str(self._file), "--out", str(self.out))

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self._folder / f"{self._started}.log").open("wb"))
        self._started += 1
        command = [*FLUFFLE, *arguments, "--broker", self._url]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=7)
    parser.add_argument("--stops", type=int, default=3, help="each takes a minute")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        node = stack.enter_context(Node())
        federation = Federation(folder, node.url, stack)
        cases = {
            "SIGKILL": (signal.SIGKILL, options.kills),
            "SIGSTOP": (signal.SIGSTOP, options.stops),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for name, (number, times) in cases.items():
            for _ in range(times):
                taken[name].append(federation.lose_leader(number))
                print(
                    f"{name}: led {taken[name][-1][0]:.1f} s, {taken[name][-1][1]:.1f} s",
                    flush=True,
                )
    print(f"\n{platform.machine()}, {os.cpu_count()} cores\n")
    print("| the leader gets | new leader after | its first version after | at most |")
    print("| --- | --- | --- | --- |")
    for name, bound in (("SIGKILL", "10 s"), ("SIGSTOP", "")):
        if taken[name]:
            led, made = (_spread([pair[i] for pair in taken[name]]) for i in (0, 1))
            print(f"| {name} | {led} | {made} | {bound} |")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} s ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
