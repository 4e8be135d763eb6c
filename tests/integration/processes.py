"""Real processes: the command line as a person starts it, and ways to watch and end them."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Longer than anything here takes on a busy machine.
PATIENCE_S = 150.0

#: Small and quick, and long enough to be killed in the middle.
EXPERIMENT = """
[experiment]
name = "test"
versions = 40
[task]
name = "mnist-mlp"
clients = 10
[partition]
examples_per_client = 1000
[training]
epochs = 2
[aggregation]
quorum = 3
[evaluation]
every_updates = 30
examples = 1000
"""


class Started:
    """A process of ours, with what it has printed."""

    def __init__(self, arguments: list[str], log: Path, under: Sequence[str] = ()) -> None:
        """``under``: the program that starts it, with arguments: strace, say."""
        self._log = log
        self._out = log.open("wb")
        self.process = subprocess.Popen(
            [*under, sys.executable, "-m", "fluffle", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "COLUMNS": "200"},
        )

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self) -> int:
        code = self.process.wait(PATIENCE_S)
        self._out.close()
        return code

    def kill(self, number: int = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def summary(self) -> dict[str, Any]:
        """The object that ``--json`` puts on the last line."""
        return dict(json.loads(self.output.strip().splitlines()[-1]))


Start = Callable[..., Started]


def version(folder: Path) -> int:
    """The newest version in a run folder that somebody else writes; -1 if there is none."""
    try:
        with sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT COALESCE(MAX(version), -1) FROM versions").fetchone()[0])
    except sqlite3.Error:
        return -1


def wait_for_version(folder: Path, wanted: int, *running: Started) -> None:
    """Until the run has got that far; fails early where somebody who should run has ended."""
    wait_until(lambda: version(folder) >= wanted, *running)


def wait_until(
    true: Callable[[], object], *running: Started, patience_s: float = PATIENCE_S
) -> None:
    """Until it is true; fails early where somebody who should run has ended."""
    deadline = time.monotonic() + patience_s
    while not true():
        for one in running:
            assert one.process.poll() is None, one.output
        assert time.monotonic() < deadline, [one.output for one in running]
        time.sleep(0.02)


def verified(start: Start, folder: Path, *more: str) -> str:
    """What ``fluffle verify`` says, which has to be good."""
    check = start("verify", folder, *more)
    assert check.wait() == 0, check.output
    return check.output
