"""Reads an experiment: the TOML file, then FLUFFLE_… variables, then ``--set``; the last one wins.

``FLUFFLE_AGGREGATION__QUORUM=5`` and ``--set aggregation.quorum=5`` say the same. Values are read
as TOML (numbers, booleans, lists, quoted strings); what is no TOML is taken as a string.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fluffle.device_files import read_device_files
from fluffle.schemas import Experiment, UserError
from fluffle.schemas.experiment import Table

_PREFIX = "FLUFFLE_"


def load_experiment(
    path: Path | None, settings: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> Experiment:
    """The validated experiment; without a file the defaults. Raises: UserError, naming the key."""
    document = _read(path) if path else {}
    for name, value in (environment or {}).items():
        if name.startswith(_PREFIX) and "__" in name:
            table, _, key = name.removeprefix(_PREFIX).lower().partition("__")
            _put(document, table, key, value)
    for setting in settings:
        where, equals, value = setting.partition("=")
        table, dot, key = where.strip().partition(".")
        if not (equals and dot and key):
            raise UserError(f"--set {setting}: write TABLE.KEY=VALUE, as in aggregation.quorum=5")
        _put(document, table, key, value.strip())
    read_device_files(document.get("devices"), path.parent if path else Path())
    try:
        return Experiment.model_validate(document)
    except ValidationError as error:
        raise UserError(f"{path or 'settings'}: {_explain(error.errors()[0])}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no experiment file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is no valid TOML: {error}") from None


def _put(document: dict[str, Any], table: str, key: str, text: str) -> None:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, key = [table, *key.split(".")]
    place = document
    for name in tables:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            return
    place[key] = value


def _explain(error: ErrorDetails) -> str:
    """One line: which key, what is wrong, what was given."""
    path = [str(part) for part in error["loc"]]
    where = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"unknown key {where}{_suggestion(path)}"
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "value_error" and "ctx" in error:
        return str(error["ctx"]["error"])
    return f"{where} = {error['input']!r}: {error['msg']}"


def _keys(kind: object) -> Iterable[str]:
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, Table) else ()


def _suggestion(path: list[str]) -> str:
    if len(path) == 1:
        known = list(Experiment.model_fields)
    elif path[0] in Experiment.model_fields:
        annotation = Experiment.model_fields[path[0]].annotation
        # An optional table's annotation is a union with None.
        known = [name for kind in get_args(annotation) or (annotation,) for name in _keys(kind)]
    else:
        return ""
    close = difflib.get_close_matches(path[-1], known, n=1)
    return (
        f"; did you mean {'.'.join([*path[:-1], close[0]])}?"
        if close
        else (f"; known are {', '.join(known)}")
    )
