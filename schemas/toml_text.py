"""TOML as text: the tables of an experiment, written such that they can be read again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(document: Mapping[str, Any]) -> str:
    """The document as TOML; ``None``, which TOML has no word for, is left out."""
    return "\n\n".join("\n".join(part) for part in _tables("", document)) + "\n"


def value_text(value: Any) -> str:
    """A value on one line. Raises: TypeError for one that TOML has no form for."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        given = {k: v for k, v in value.items() if v is not None}
        return "{" + ", ".join(f"{_key(k)} = {value_text(v)}" for k, v in given.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_text, value))}]"
    raise TypeError(f"TOML has no {type(value).__name__}")


def _tables(name: str, table: Mapping[str, Any]) -> Iterator[list[str]]:
    nested = {k: v for k, v in table.items() if isinstance(v, Mapping) or _is_array_of_tables(v)}
    lines = [f"[{name}]"] if name else []
    for key, value in table.items():
        if value is not None and key not in nested:
            lines.append(f"{_key(key)} = {value_text(value)}")
    if lines:
        yield lines
    for key, value in nested.items():
        below = f"{name}.{_key(key)}" if name else _key(key)
        if isinstance(value, Mapping):
            yield from _tables(below, value)
            continue
        for one in value:
            given = {k: v for k, v in one.items() if v is not None}
            yield [f"[[{below}]]", *(f"{_key(k)} = {value_text(v)}" for k, v in given.items())]


def _is_array_of_tables(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(one, Mapping) for one in value)
    )


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else value_text(name)
