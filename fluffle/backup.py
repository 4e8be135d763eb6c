"""A backup of a run folder, also while its aggregator leads: a copy that is a run by itself.

The ledger is copied first, by SQLite, as of one moment; then what lies beside it. Weights that the
aggregator has deleted meanwhile make the copy incomplete, which its checks find, and it is begun
again. Weights of versions that the copied ledger does not know yet are left out.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from fluffle.aggregator.ledger.disk import cannot_write
from fluffle.aggregator.ledger.leftovers import newer_models
from fluffle.aggregator.ledger.reader import LEDGER, LedgerReader
from fluffle.aggregator.verify import verify
from fluffle.schemas import UserError

#: A copy of a busy run is begun again so often.
TRIES = 5
#: What belongs to this machine: a private node's data, locks, logs, SQLite's side files.
_LEFT_OUT = ("rabbitmq", "logs", ".lock", LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm")


def back_up(folder: Path, to: Path, between: Callable[[], None] = lambda: None) -> int:
    """Copy the run in ``folder`` to ``to``, which may not exist; the version it ends with.

    between: called between the copy of the ledger and that of its files.
    Raises: UserError where there is no run, ``to`` is there, or the run is too busy.
    """
    if to.exists():
        raise UserError(f"{to} is there already: name a folder that is not")
    with closing(LedgerReader(folder)) as ledger:
        ledger.latest_version()
    part = to.with_name(f"{to.name}.part")
    try:
        for _ in range(TRIES):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            _copy_ledger(folder, part)
            between()
            _copy_files(folder, part)
            version = _version_if_whole(part)
            if version is not None:
                part.rename(to)
                return version
    except OSError as error:
        raise cannot_write(to, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    raise UserError(
        f"the run in {folder} makes versions faster than they can be copied: raise "
        "aggregation.keep_versions, or stop the aggregator while the folder is copied"
    )


def _copy_ledger(folder: Path, to: Path) -> None:
    source = f"{(folder / LEDGER).absolute().as_uri()}?mode=ro"
    with (
        closing(sqlite3.connect(source, uri=True, timeout=30)) as there,
        closing(sqlite3.connect(to / LEDGER)) as here,
    ):
        there.backup(here)


def _copy_files(folder: Path, to: Path) -> None:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if inside.parts[0] in _LEFT_OUT or not path.is_file() or path.suffix == ".tmp":
            continue
        (to / inside).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copy2(path, to / inside)
        except FileNotFoundError:
            continue  # deleted meanwhile: the checks say whether it is needed


def _version_if_whole(copy: Path) -> int | None:
    with closing(LedgerReader(copy)) as ledger:
        version, epoch = ledger.latest_version(), int(ledger.meta["epoch"])
        for path in newer_models(copy, version, epoch):
            path.unlink()
        return None if verify(ledger) else version
