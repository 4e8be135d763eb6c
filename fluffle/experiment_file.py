"""The experiment: its TOML file, then FLUFFLE_… variables, then ``--set``; the last one wins.

``FLUFFLE_AGGREGATION__QUORUM=5`` and ``--set aggregation.quorum=5`` say the same. Values are read
as TOML (numbers, booleans, lists, quoted strings); what is no TOML is taken as a string. Nothing,
``aggregation.quorum=``, takes the key out.
"""

from __future__ import annotations

import codecs
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fluffle.device_files import read_device_files
from fluffle.schemas import Experiment, UserError
from fluffle.schemas.aggregation import keys_of
from fluffle.schemas.table import Table

_PREFIX = "FLUFFLE_"
#: Of Keras 3, as ``keras.optimizers.get`` takes them.
_OPTIMIZERS = (
    *("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "ftrl", "lamb", "lion"),
    *("muon", "nadam", "rmsprop", "sgd"),
)


def load_experiment(
    path: Path | None, settings: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> Experiment:
    """The validated experiment; without a file the defaults. Raises: UserError, naming the key."""
    document = document_of(path, settings, environment)
    return experiment_of(document, path.parent if path else Path(), str(path or "settings"))


def document_of(
    path: Path | None, settings: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The tables of a file with what overrides them, not validated. Raises: UserError."""
    document = read_document(path) if path else {}
    for name, value in (environment or {}).items():
        if name.startswith(_PREFIX) and "__" in name:
            table, _, key = name.removeprefix(_PREFIX).lower().partition("__")
            _put(document, table, key, value)
    for setting in settings:
        where, equals, value = setting.partition("=")
        table, dot, key = where.strip().partition(".")
        if not (equals and dot and key):
            raise UserError(
                f"--set {setting}: write TABLE.KEY=VALUE, as in {_example(where.strip())}=5"
            )
        _put(document, table, key, value.strip())
    return document


def experiment_of(document: dict[str, Any], folder: Path, where: str) -> Experiment:
    """The experiment of a document, whose files lie in ``folder``. Raises: UserError.

    where: what the document is called in an error.
    """
    read_device_files(document.get("devices"), folder)
    try:
        experiment = Experiment.model_validate(document)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error.errors()[0], document)}") from None
    _check_optimizer(experiment.training.optimizer)
    return experiment


def full_name(key: str, document: Mapping[str, Any]) -> str:
    """TABLE.KEY of a key without its table: quorum is aggregation.quorum. Raises: UserError where
    no table has it, or several have.

    document: whose strategy says what [aggregation] takes.
    """
    if "." in key:
        return key
    homes = [table for table in Experiment.model_fields if key in _known_in(table, document)]
    if len(homes) == 1:
        return f"{homes[0]}.{key}"
    if homes:
        raise UserError(f"{key} is a key of {' and of '.join(homes)}: say which, {homes[0]}.{key}")
    known = {k: f"{table}.{k}" for table in Experiment.model_fields
             for k in _known_in(table, document)}  # fmt: skip
    close = _close(key, known)
    meant = f"; did you mean {known[close]}?" if close else ""
    raise UserError(f"no table of an experiment has a key {key}{meant}")


def _check_optimizer(name: str) -> None:
    """Keras knows its optimizers, but it is asked where a client trains: a typo is found here."""
    if name.lower() not in _OPTIMIZERS and (meant := _close(name.lower(), _OPTIMIZERS)):
        raise UserError(f"training.optimizer = {name!r} is none of Keras's; did you mean {meant}?")


def _close(name: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, list(known))
    swapped = [word for word in close if sorted(word) == sorted(name)]
    return next(iter(swapped or close), None)


def read_document(path: Path) -> dict[str, Any]:
    """The tables of an experiment file. Raises: UserError."""
    try:
        raw = path.read_bytes()
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError(f"{path} is UTF-16, and TOML is UTF-8: save it as UTF-8")
        return tomllib.loads(raw.decode("utf-8-sig").replace("\r\n", "\n"))
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
    nested = document
    for name in tables:
        nested = nested.setdefault(name, {})
        if not isinstance(nested, dict):
            return
    if text:
        nested[key] = value
    else:
        nested.pop(key, None)


def _explain(error: ErrorDetails, document: Mapping[str, Any]) -> str:
    """One line: which key, what is wrong, what was given."""
    path = [str(part) for part in error["loc"]]
    where = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"unknown key {where}{_suggestion(path, document)}"
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "value_error" and "ctx" in error:
        return str(error["ctx"]["error"])
    said = f"{where} = {error['input']!r}: {error['msg']}"
    if error["type"] == "literal_error":
        values = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        if close := _close(str(error["input"]), values):
            said += f"; did you mean {close}?"
    return said


def _keys(kind: object) -> Iterable[str]:
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, Table) else ()


def _example(key: str) -> str:
    """A key with its table; the one that was meant, if a table has one of this name."""
    known = {k: f"{name}.{k}" for name in Experiment.model_fields for k in _known_in(name)}
    return known.get(_close(key, known) or "", "aggregation.quorum")


def _known_in(table: str, document: Mapping[str, Any] | None = None) -> list[str]:
    if table == "aggregation" and document is not None:
        try:
            strategy = (document.get(table) or {}).get("strategy", "fedbuff")
            return list(keys_of(strategy).model_fields)
        except (ValueError, AttributeError, TypeError):  # said when it is validated
            return list(keys_of("fedbuff").model_fields)
    annotation = Experiment.model_fields[table].annotation
    # An optional table's annotation is a union with None.
    return [name for kind in get_args(annotation) or (annotation,) for name in _keys(kind)]


def _suggestion(path: list[str], document: Mapping[str, Any]) -> str:
    if len(path) == 1:
        known = list(Experiment.model_fields)
    elif path[0] == "aggregation":
        known = list(keys_of(document["aggregation"].get("strategy", "fedbuff")).model_fields)
    elif path[0] in Experiment.model_fields:
        known = _known_in(path[0])
    else:
        return ""
    if close := _close(path[-1], known):
        return f"; did you mean {'.'.join([*path[:-1], close])}?"
    return f"; known are {', '.join(known)}"
