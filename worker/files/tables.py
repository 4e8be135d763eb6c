"""Tables, CSV or Parquet: a column that says whose a row is, or a file for each client."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas import UserError
from fluffle.worker.files import files_in
from fluffle.worker.tasks.client_data import ClientData, check_declared, numbered


def read_csv(
    path: str | Path,
    *,
    target: str | Sequence[str],
    client: str | None = None,
    features: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    delimiter: str = ",",
) -> ClientData:
    """Examples from a CSV file with a header, or from a folder of them, one for each client.

    target: the column to learn, text (its classes, sorted) or numbers; or several, of numbers.
    client: the column that says whose a row is.
    features: the columns to learn from, of numbers; default: all others.
    classes: those of a target in words, in the order of their numbers; default: the words, sorted.
        Sites, which read files of their own, have to give both: a number means the same at all.
    x has shape (rows, features), float32. Raises: UserError.
    """
    columns = _Columns(target, client, features, classes)
    return _read(Path(path), (".csv", ".tsv"), columns, partial(_csv, delimiter=delimiter), 2)


def read_parquet(
    path: str | Path,
    *,
    target: str | Sequence[str],
    client: str | None = None,
    features: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> ClientData:
    """As ``read_csv``, from Parquet."""
    return _read(
        Path(path), (".parquet",), _Columns(target, client, features, classes), _parquet, 1
    )


class _Columns(NamedTuple):
    target: str | Sequence[str]
    client: str | None
    features: Sequence[str] | None
    classes: Sequence[str] | None

    @property
    def targets(self) -> list[str]:
        return [self.target] if isinstance(self.target, str) else list(self.target)


class _Part(NamedTuple):
    """One file."""

    x: NDArray[np.float32]
    y: NDArray[Any]
    clients: NDArray[np.str_]


def _read(
    path: Path,
    endings: tuple[str, ...],
    columns: _Columns,
    read: Callable[[Path], Any],
    first_row: int,
) -> ClientData:
    files = files_in(path, endings) if path.is_dir() else [path]
    features = columns.features
    check_declared("columns", 'features=["age", "stay"]', features, path)
    parts: list[_Part] = []
    for file in files:
        table = _Table(file, _opened(file, read), first_row)
        if features is None:  # all files have to have what the first has
            others = {*columns.targets, columns.client}
            features = [name for name in table.names if name not in others]
        parts.append(_part(table, columns, features))
        if (parts[-1].y.dtype.kind == "U") != (parts[0].y.dtype.kind == "U"):
            raise UserError(f"column {columns.target!r} is text in one of {files[0]} and {file}")
    y = np.concatenate([part.y for part in parts])
    classes: tuple[str, ...] = ()
    if y.dtype.kind == "U":
        y, classes = numbered(y, columns.classes, str(path))
    elif columns.classes is not None:
        raise UserError(
            f"{path}: classes= are for a target in words, and {columns.target!r} is none"
        )
    elif y.dtype.kind == "f":  # whole numbers in one file, and others in another
        y = y.astype(np.float32)
    whose = None
    if columns.client is not None or path.is_dir():
        whose = np.concatenate([part.clients for part in parts])
    return ClientData.by_name(np.concatenate([p.x for p in parts]), y, whose, str(path), classes)


def _part(table: _Table, columns: _Columns, features: Sequence[str]) -> _Part:
    table.check([*columns.targets, *filter(None, [columns.client]), *features])
    if not features:
        raise UserError(f"{table.file} has no column to learn from beside {columns.targets}")
    if isinstance(columns.target, str):
        y = table.target(columns.target)
    else:
        y = np.stack([table.numbers(name, np.float32) for name in columns.targets], axis=1)
    x = np.stack([table.numbers(name, np.float32) for name in features], axis=1)
    if columns.client is None:
        return _Part(x, y, np.full(len(y), table.file.stem))
    return _Part(x, y, table.text(columns.client))


class _Table:
    """A table, whose cells a person finds again by what is said of them."""

    def __init__(self, file: Path, table: Any, first_row: int) -> None:
        self.file = file
        self.names: list[str] = table.column_names
        self._table = table
        self._first_row = first_row
        if not len(table):
            raise UserError(f"{file} has no rows")

    def check(self, wanted: Sequence[str]) -> None:
        """Raises: UserError where one of these columns is not there, or more than once."""
        for name in wanted:
            if name not in self.names:
                near = difflib.get_close_matches(name, self.names, 1)
                meant = f"; did you mean {near[0]!r}?" if near else ";"
                some = ", ".join(self.names[:20])
                raise UserError(f"{self.file} has no column {name!r}{meant} it has {some}")
            if self.names.count(name) > 1:
                raise UserError(f"{self.file} has several columns {name!r}")

    def target(self, name: str) -> NDArray[Any]:
        """Text; whole numbers as int64, others as float32."""
        import pyarrow as pa

        kind = self._table.column(name).type
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return self.numbers(name, np.int64)
        return self.numbers(name, np.float32) if pa.types.is_floating(kind) else self.text(name)

    def numbers(self, name: str, dtype: type[np.generic]) -> NDArray[Any]:
        """A column of finite numbers, shape (rows,). Raises: UserError with the row."""
        import pyarrow as pa

        column = self._whole(name)
        kind = column.type
        if not any(
            is_kind(kind)
            for is_kind in (
                pa.types.is_integer,
                pa.types.is_floating,
                pa.types.is_boolean,
                pa.types.is_decimal,
            )
        ):
            values = column.to_pylist()
            row = next((i for i, value in enumerate(values) if not _is_number(value)), 0)
            raise UserError(
                f"{self._cell(name, row)}: {values[row]!r} is no number; say which columns to "
                "learn from with features=[…]"
            )
        array: NDArray[Any] = np.asarray(column.to_numpy()).astype(dtype)
        if len(wrong := np.flatnonzero(~np.isfinite(array))):
            row = int(wrong[0])
            raise UserError(f"{self._cell(name, row)}: {column[row]} is no finite number here")
        return array

    def text(self, name: str) -> NDArray[np.str_]:
        """A column as text, shape (rows,). Raises: UserError with the row."""
        return np.array([str(value) for value in self._whole(name).to_pylist()], np.str_)

    def _whole(self, name: str) -> Any:
        """The column, which has to have a value in each row."""
        column = self._table.column(name)
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise UserError(f"{self._cell(name, row)}: there is nothing; fill it or drop the row")
        return column

    def _cell(self, name: str, row: int) -> str:
        what = "line" if self._first_row == 2 else "row"
        return f"{self.file}, {what} {row + self._first_row}, column {name!r}"


def _opened(file: Path, read: Callable[[Path], Any]) -> Any:
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise UserError("reading tables needs pyarrow: pip install 'fluffle[data]'") from None
    try:
        return read(file)
    except FileNotFoundError:
        raise UserError(f"there is no file or folder {file}") from None
    except (OSError, pa.ArrowException) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{file} cannot be read: {said}") from None


def _csv(file: Path, delimiter: str) -> Any:
    from pyarrow import csv

    # One block: a column's type is inferred from all of it. One thread: it says which row is wrong.
    size = min(max(file.stat().st_size, 1) + 1, 2**31 - 1)
    whole = csv.ReadOptions(use_threads=False, block_size=size)
    if file.suffix == ".tsv":
        delimiter = "\t"
    return csv.read_csv(file, whole, csv.ParseOptions(delimiter=delimiter))


def _parquet(file: Path) -> Any:
    from pyarrow import parquet

    return parquet.read_table(file)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
