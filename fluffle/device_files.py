"""CSV files of devices: read when an experiment file is loaded, by who loads it, and by no worker.

What is wrong with one is said by the row's number: a file may be anything, and is not quoted.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fluffle.schemas import Experiment, UserError
from fluffle.schemas.device_tables import (
    HARDWARE_COLUMNS,
    MOST_NUMBERS,
    TRACE_COLUMNS,
    Row,
    is_device,
    is_span,
    text_of,
)
from fluffle.schemas.sizes import MIB

_MOST_BYTES = 32 * MIB
#: A message's head, which holds the plan, has at most 64 KiB.
_TRAVELS_BYTES = 24_000


def read_device_files(devices: Any, folder: Path) -> None:
    """Put tables in the place of the paths in a ``[devices]`` table; relative ones from ``folder``.

    Raises: UserError.
    """
    if not isinstance(devices, dict):
        return
    for key, read in (("trace", _trace), ("hardware", _hardware)):
        if isinstance(path := devices.get(key), str):
            devices[key] = read(f"devices.{key}", folder / path)


def check_travels(experiment: Experiment) -> None:
    """Raises: UserError where the tables are too long for a message to a worker."""
    devices = experiment.devices
    size = len((devices and devices.trace) or "") + len((devices and devices.hardware) or "")
    if size > _TRAVELS_BYTES:
        raise UserError(
            f"devices.trace and devices.hardware are {size:,} characters as they travel, and with "
            f"workers elsewhere {_TRAVELS_BYTES:,} at most: take --clock virtual, or fewer rows"
        )


def _trace(key: str, path: Path) -> str:
    reader = _reader(key, path)
    if set(reader.fieldnames or ()) != set(TRACE_COLUMNS):
        raise UserError(f"{key}: {path} is no CSV with columns {','.join(TRACE_COLUMNS)}")
    return text_of(
        _rows(
            *(key, path, reader),
            lambda row: tuple(float(row[c]) for c in TRACE_COLUMNS),
            is_span,
        )
    )


def _hardware(key: str, path: Path) -> str:
    reader = _reader(key, path)
    if not reader.fieldnames or not set(reader.fieldnames) <= set(HARDWARE_COLUMNS):
        raise UserError(
            f"{key}: {path} is no CSV of devices, with some of the columns "
            f"{','.join(HARDWARE_COLUMNS)}"
        )
    return text_of(
        _rows(
            *(key, path, reader),
            lambda row: tuple(float(row.get(c, d)) for c, d in HARDWARE_COLUMNS.items()),
            is_device,
        )
    )


def _reader(key: str, path: Path) -> csv.DictReader[str]:
    try:
        if not path.exists():
            raise UserError(f"{key}: there is no file {path}")
        if not path.is_file():
            raise UserError(f"{key}: {path} is no regular file")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{key}: cannot read {path}: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise UserError(f"{key}: {path} has more than {_MOST_BYTES // MIB} MiB")
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8"), newline=""))
        _ = reader.fieldnames
    except (UnicodeDecodeError, csv.Error):
        raise UserError(f"{key}: {path} is no CSV in UTF-8") from None
    return reader


def _rows(
    key: str,
    path: Path,
    reader: csv.DictReader[str],
    made_of: Callable[[Any], Row],
    fits: Callable[[Row], bool],
) -> list[Row]:
    rows: list[Row] = []
    try:
        for row in reader:
            rows.append(made_of(row))
            if None in row or not fits(rows[-1]):
                raise ValueError
            if len(rows) * len(rows[-1]) > MOST_NUMBERS:
                raise UserError(f"{key}: {path} has more than {MOST_NUMBERS:,} numbers")
    except (ValueError, TypeError, csv.Error):
        raise UserError(
            f"{key}: line {reader.line_num} of {path} does not fit its header"
        ) from None
    if not rows:
        raise UserError(f"{key}: {path} has no rows")
    return rows
