"""Damage: a ledger that SQLite can read, and that holds what no aggregator has written.

A flipped bit, a hand or another program may leave any value in any place, and whoever reads it
stumbles somewhere of its own. So it is looked for when somebody has stumbled, and not before.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from pydantic import ValidationError

from fluffle.aggregator.ledger.reader import LEDGER, DamagedLedger, LedgerReader
from fluffle.aggregator.ledger.schema import migrate
from fluffle.schemas import DecodeError, Experiment, UserError

#: What reading a value that nobody has written ends in.
_STUMBLES = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
#: A column's type -> what SQLite may say that a value in it is.
_TYPES = {
    "INTEGER": ("integer",),
    "REAL": ("real", "integer"),
    "TEXT": ("text",),
    "BLOB": ("blob",),
}
#: Columns of JSON objects whose values are numbers.
_NUMBERS = (("updates", "metrics"), ("updates", "norms"), ("evaluations", "metrics"))


def _best(text: str) -> None:
    version, file, _ = json.loads(text)
    if not (isinstance(version, int) and isinstance(file, str)):
        raise ValueError(text)


def _list(text: str) -> None:
    if not isinstance(json.loads(text), list):
        raise ValueError(text)


#: Key -> what reads its value, of what a run writes down when it begins, and of what comes later.
_BEGUN: Mapping[str, Callable[[str], object]] = {
    **{"run_id": str, "run_started": int, "epoch": int, "status": str},
    "experiment": Experiment.stored,
}
_LATER: Mapping[str, Callable[[str], object]] = {
    **{"turn": int, "elapsed_s": float, "duplicates": int, "buffer_file": str},
    **{"arithmetic": _list, "best": _best},
}


@contextmanager
def blamed(folder: Path) -> Iterator[None]:
    """Whoever stumbles within over what is in the ledger of this folder hears that it is damaged.

    Raises: DamagedLedger; whatever else was raised, where there is no damage.
    """
    try:
        yield
    except (*_STUMBLES, sqlite3.DatabaseError) as error:
        if what := _is_to_blame(error) or _damage_in(folder):
            raise DamagedLedger(folder / LEDGER, what) from error
        raise


def _is_to_blame(error: Exception) -> str | None:
    """Of themselves, errors of SQLite's other than being busy, and messages that are none."""
    busy = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    of_sqlite = isinstance(error, sqlite3.DatabaseError)
    if of_sqlite and getattr(error, "sqlite_errorcode", 0) & 0xFF not in busy:
        return str(error)
    return f"an update that waits: {error}" if isinstance(error, DecodeError) else None


def _damage_in(folder: Path) -> str | None:
    """The first thing that is wrong."""
    try:
        with closing(LedgerReader(folder)) as ledger:
            return _wrong_meta(ledger.meta) or _wrong_value(ledger)
    except (UserError, sqlite3.DatabaseError) as error:
        return str(error)


def _wrong_meta(meta: Mapping[str, object]) -> str | None:
    for key, read in {**_BEGUN, **_LATER}.items():
        value = meta.get(key)
        if value is None and key in _LATER:
            continue
        try:
            if not isinstance(value, str):
                raise TypeError(key)
            read(value)
        except ValidationError:
            return "its experiment is none that this version understands"
        except (TypeError, ValueError):
            return f"{key} is missing, or no {key}"
    return None


def _wrong_value(ledger: LedgerReader) -> str | None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        migrate(fresh, Path())
        columns = fresh.execute(
            'SELECT m.name, c.name, c.type, c."notnull" OR c.pk FROM sqlite_master m,'
            " pragma_table_info(m.name) c WHERE m.type = 'table' AND m.name != 'meta'"
        ).fetchall()
    for table, column, kind, needed in columns:
        types = [*_TYPES[kind], *([] if needed else ["null"])]
        listed = ", ".join(f"'{name}'" for name in types)
        wrong = f"typeof({column}) NOT IN ({listed})"
        if (table, column) in _NUMBERS:
            numbers = f"SELECT 1 FROM json_each({column}) WHERE type NOT IN ('integer', 'real')"
            wrong += f" OR NOT json_valid({column}) OR json_type({column}) != 'object'"
            wrong += f" OR EXISTS ({numbers})"
        if ledger.count(f"{table} WHERE {wrong}"):
            return f"a {column} in its table {table} is none"
    return None
