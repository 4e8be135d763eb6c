"""The work of a sweep: one run after the other, whoever else works on it, each once.

Whoever works takes the next run that is not done and that nobody holds (a lock file), so that any
number of processes can share one folder, and a sweep that was killed goes on where it was. In one
process, under the virtual clock, runs of the same shape share what was compiled for them.

    python -P -m fluffle.api.sweeping FOLDER     works on the sweep there, until nothing is left
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fluffle.api.plans import Cell, SweepPlan, load_plan
from fluffle.api.runs import code_in
from fluffle.schemas import UserError

_log = logging.getLogger(__name__)
#: A run that ended for good: it is not done again.
DONE = ("finished", "aborted")
_FAILED = "failed.txt"
_REFRESH_S = 0.3
#: What a worker process may take to leave.
_LEAVE_S = 30.0


def status_of(folder: Path) -> str:
    """How a run of a sweep stands: waiting, running, finished, aborted or failed.

    One that failed before this sweep began, and shall be tried again, waits.
    """
    from fluffle.aggregator.ledger.reader import standing

    if (folder / _FAILED).exists():
        return "failed"
    found = standing(folder)
    return "waiting" if found is None or found[1] == "failed" else found[1]


def reason_of(folder: Path) -> str:
    """Why a run of a sweep failed, in a line."""
    with suppress(OSError):
        return (folder / _FAILED).read_text(encoding="utf-8").strip()
    return ""


def work(
    folder: Path,
    plan: SweepPlan,
    slots: int,
    told: Callable[[Cell, str], None] = lambda cell, how: None,
) -> bool:
    """Do what is left to do of a sweep in this process; whether Ctrl-C ended it before its end.

    A run that fails says why in its folder, and the others go on. told: of each run that ends here.
    """
    from fluffle.display import Display
    from fluffle.launch import launch
    from fluffle.worker.training.sharing import Trainers

    shared = Trainers()
    locks = folder / ".locks"
    locks.mkdir(exist_ok=True)
    for cell in plan.cells:
        place = folder / cell.folder
        with _claimed(locks / f"{cell.folder}.lock") as mine:
            if not mine or status_of(place) in (*DONE, "failed"):
                continue
            try:
                with (
                    code_in(cell.resolved.code),
                    _only_warnings(),
                    Display(cell.label, quiet=True) as display,
                ):
                    summary = launch(
                        *(cell.resolved.experiment, place, display),
                        code=cell.resolved.code,
                        clock=plan.clock,
                        slots=slots,
                        save=False,
                        shared=shared,
                    )
            except UserError as error:
                summary = {"status": "failed", "detail": str(error)}
            if summary["status"] == "stopped":
                return True
            if summary["status"] == "failed":
                place.mkdir(parents=True, exist_ok=True)
                (place / _FAILED).write_text(f"{summary['detail']}\n", encoding="utf-8")
            told(cell, str(summary["status"]))
    return False


def try_again(folder: Path, plan: SweepPlan) -> None:
    """Let runs that failed be done again: perhaps what was wrong has been mended."""
    for cell in plan.cells:
        (folder / cell.folder / _FAILED).unlink(missing_ok=True)


def work_in_processes(folder: Path, jobs: int, shown: Callable[[], None]) -> bool:
    """Have ``jobs`` processes work on the sweep there; whether Ctrl-C ended it.

    shown: called a few times a second. Raises: UserError where one of them dies.
    """
    from fluffle.running import stopping

    environment = {**os.environ, "FLUFFLE_SWEEP_PARENT": str(os.getpid())}
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    with stopping(stop):
        for number in range(jobs):
            with (logs / f"job-{number}.log").open("ab") as log:
                command = [sys.executable, "-P", "-m", "fluffle.api.sweeping", str(folder)]
                processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,  # Ctrl-C is for us, who stop them in order
                    )
                )
        try:
            while any(process.poll() is None for process in processes):
                shown()
                time.sleep(_REFRESH_S)
        finally:
            if any(process.poll() is None for process in processes):
                stop()
            for process in processes:
                try:
                    process.wait(_LEAVE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    shown()
    if not stopped.is_set() and any(p.returncode not in (0, 130) for p in processes):
        raise UserError(f"a process of the sweep has died: see {logs}; the same command goes on")
    return stopped.is_set()


@contextmanager
def _only_warnings() -> Iterator[None]:
    """Within, a run says nothing of its progress: the sweep does."""
    logger = logging.getLogger("fluffle")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Whether nobody else is at this run; while within, nobody else will be."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _leave_with(parent: int) -> None:
    """End when the process that wanted this is gone, as if it had said so."""
    while os.getppid() == parent:
        time.sleep(1.0)
    signal.raise_signal(signal.SIGTERM)


def main() -> None:
    """Work on the sweep in a folder, one thread of training."""
    from fluffle import logs

    folder = Path(sys.argv[1])
    parent = int(os.environ.get("FLUFFLE_SWEEP_PARENT", "0"))
    if parent:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    with logs.installed("info", "text"):
        try:
            stopped = work(
                *(folder, load_plan(folder), 1),
                told=lambda cell, how: print(json.dumps([cell.folder, how]), flush=True),
            )
        except UserError as error:
            print(f"fluffle: {error}", file=sys.stderr)
            sys.exit(2)
    sys.exit(130 if stopped else 0)


if __name__ == "__main__":
    main()
