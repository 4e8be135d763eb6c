"""Sources of an experiment in Python: a file, a dict, an ``Experiment``, and what is changed in it.

Classes may stand in the place of names: a task, strategy, algorithm, partition or client step that
this process defines, in a notebook for instance.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluffle.experiment_file import experiment_of, full_name, read_document
from fluffle.schemas import Experiment, UserError
from fluffle.schemas.user_code import HERE, give
from fluffle.shipped import experiment_file

Source = str | Path | Mapping[str, Any] | Experiment
#: The key that a table's bare value means: task="mnist-mlp".
_MEANT = {"task": "name", "partition": "kind"}


@dataclass(frozen=True)
class Resolved:
    """An experiment, and where the files that it names are looked for."""

    experiment: Experiment
    code: Path

    @property
    def is_here(self) -> bool:
        """Whether it needs a class of this process, which no other can load."""
        return f'"{HERE}:' in self.experiment.model_dump_json()


def document_of(source: Source) -> tuple[dict[str, Any], Path]:
    """The tables of a source, and the folder of its files. Raises: UserError."""
    if isinstance(source, Experiment):
        return source.model_dump(mode="json", exclude_unset=True), Path()
    if isinstance(source, Mapping):
        document = copy.deepcopy(_plain(source))
        for table, key in _MEANT.items():
            if isinstance(document.get(table), str):
                document[table] = {key: document[table]}
        return document, Path()
    path = experiment_file(Path(source))
    return read_document(path), path.parent


def resolve(
    source: Source, overrides: Mapping[str, Any] | None = None, code: Path | None = None
) -> Resolved:
    """The experiment of a source, with these settings changed.

    overrides: by TABLE.KEY, or by a key that one table alone has; a class for a name; ``None``
        takes the key out. A whole table may be given as a dict, which is laid over the source's.
    code: the folder of files that it names; default: the experiment file's, or the present one.
    Raises: UserError, naming the key.
    """
    document, folder = document_of(source)
    where = "settings" if isinstance(source, Mapping | Experiment) else str(source)
    given = {key.replace("__", "."): _plain(value) for key, value in (overrides or {}).items()}
    # A strategy says which keys there are, so it comes first.
    for key in sorted(given, key=lambda key: key not in ("strategy", "aggregation.strategy")):
        _lay(document, key, given[key])
    code = code or folder
    files = code if isinstance(source, Mapping) else folder
    return Resolved(experiment_of(document, files, where), code)


def _lay(document: dict[str, Any], key: str, value: Any) -> None:
    if key in Experiment.model_fields:
        if isinstance(value, Mapping):
            _merge(document.setdefault(key, {}), value)
            return
        if isinstance(value, list):
            document[key] = value
            return
        if value is None:
            document.pop(key, None)
            return
        if key not in _MEANT:
            raise UserError(f"{key} is a table: give a dict, {key}={{…}}, or one of its keys")
        key = f"{key}.{_MEANT[key]}"
    *tables, last = full_name(key, document).split(".")
    nested = document
    for name in tables:
        nested = nested.setdefault(name, {})
        if not isinstance(nested, dict):
            raise UserError(f"{key}: {name} is no table")
    if value is None:
        nested.pop(last, None)
    else:
        nested[last] = value


def _merge(table: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(table.get(key), dict):
            _merge(table[key], value)
        elif value is None:
            table.pop(key, None)
        else:
            table[key] = value


def _plain(value: Any) -> Any:
    """A value as an experiment file could have it: numbers of NumPy as Python's, classes by a name
    by which this process finds them again."""
    if isinstance(value, type):
        return give(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(
        f"{value!r:.80} is no value of an experiment: give a number, a text, a list or a dict; of "
        "a task, strategy or algorithm the class itself, without calling it"
    )
