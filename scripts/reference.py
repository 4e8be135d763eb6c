"""Reference pages in Markdown, made from the code: every experiment key, every command.

Keys come from the pydantic models of schemas/, and what they mean from the ``#:`` comments above
them; commands come from the parser itself. So neither page can say what the code does not do.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import fluffle.schemas.experiment
import fluffle.schemas.steps
from fluffle.aggregator.strategies.custom import CustomParameters
from fluffle.commands.app import app
from fluffle.schemas.aggregation import own_keys, strategies
from fluffle.schemas.experiment import PARTITIONS, Experiment
from fluffle.schemas.schedules import Schedule

_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", dict: "table"}
_OF_KEYS = """\
An experiment is one TOML file. Every key may be left out but those marked *required*.
The environment variable `FLUFFLE_AGGREGATION__QUORUM=5` overrides the file, and
`--set aggregation.quorum=5` both. A key that does not exist is an error that names the one you may
have meant."""
_OF_STEPS = """\
Steps that every client does to its delta, in the order in which they stand in the file; the server
undoes them in reverse. See [updates](../updates.md)."""
_OF_STRATEGIES = """\
What each strategy takes besides. A key that does not belong to the chosen one is an error. See
[strategies](../strategies.md)."""
_OF_COMMANDS = """\
`fluffle COMMAND --help` says the same. What a person can mend ends with one line and exit code 2.
Where a variable is named, it does what the option does."""
_TAGGED = get_args(get_args(fluffle.schemas.steps.Step)[0])
_SCHEDULED = ("local_schedule", "version_schedule")
_SCHEDULES = get_args(get_args(Schedule)[0])
_STEPS = list(dict.fromkeys(get_args(step)[0] for step in _TAGGED))


@dataclass(frozen=True)
class Key:
    """One key of the experiment file."""

    table: str
    name: str
    type: str
    default: str
    meaning: str


# ---- experiment keys


def experiment_keys() -> list[Key]:
    """Every key, in the order of the code."""
    found = [key for table, model in _tables() for key in _keys_of(table, model)]
    found = [key for key in found if key.name not in _SCHEDULED]
    found += [key for name in _SCHEDULED for key in _schedule_keys(name)]
    found += [key for _, keys in strategy_keys() for key in keys]
    return found + [key for step in _STEPS for key in _keys_of("update", step)]


def strategy_keys() -> Iterator[tuple[str, list[Key]]]:
    """Each strategy by its name, with the keys of its own."""
    for name, model in {**strategies(), "FILE.py:Class": CustomParameters}.items():
        own = own_keys(model)
        yield name, [key for key in _keys_of("aggregation", model) if key.name in own]


def experiment_page() -> str:
    """All tables of the experiment file."""
    parts = [
        "# Every key of the experiment file",
        _OF_KEYS,
        "Where no default is shown, the text says what happens without the key.",
    ]
    for table, model in _tables():
        parts += [f"## [{table}] {{ #{table} }}", inspect.getdoc(model) or ""]
        parts.append(_key_table(_keys_of(table, model)))
        if table == "training":
            parts += _schedule_parts()
        if table == "aggregation":
            parts += _strategy_parts()
    parts += [
        "## [[update]] { #update }",
        _OF_STEPS,
    ]
    for step in _STEPS:
        kinds = get_args(step.model_fields["kind"].annotation) or ("FILE.py:Class",)
        parts.append("### " + ", ".join(f'kind = "{kind}"' for kind in kinds))
        parts.append(inspect.getdoc(step) or "")
        parts.append(_key_table(k for k in _keys_of("update", step) if k.name != "kind"))
    return "\n\n".join(parts) + "\n"


def _schedule_keys(name: str) -> list[Key]:
    """The keys of all kinds of a schedule, each once, with the kinds that take it."""
    table, found = f"training.{name}", dict[str, Key]()
    kinds = {get_args(m.model_fields["kind"].annotation)[0]: m for m in _SCHEDULES}
    shown = ", ".join(f"`{kind}`" for kind in kinds)
    found["kind"] = Key(table, "kind", shown, "*required*", "What the rate does.")
    for kind, model in kinds.items():
        for key in _keys_of(table, model):
            of = "" if key.name == "warmup" else f"{kind}: "
            found.setdefault(key.name, replace(key, meaning=of + key.meaning))
    return list(found.values())


def _schedule_parts() -> Iterator[str]:
    for name in _SCHEDULED:
        yield f"### [training.{name}]"
        yield _key_table(_schedule_keys(name))


def _strategy_parts() -> Iterator[str]:
    models = {**strategies(), "FILE.py:Class": CustomParameters}
    known: set[str] = set()
    yield _OF_STRATEGIES
    for name, keys in strategy_keys():
        yield f'### strategy = "{name}"'
        yield inspect.getdoc(models[name]) or ""
        yield _key_table(keys, known) if keys else "Nothing besides."
        known |= {key.name for key in keys}


def _tables() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in Experiment.model_fields.items():
        for model in _options(field.annotation):
            if inspect.isclass(model) and issubclass(model, BaseModel):
                yield name, model


def _keys_of(table: str, model: type[BaseModel]) -> list[Key]:
    comments: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            comments |= _comments(base)
    return [
        Key(table, name, _type(name, field), _default(field), comments.get(name, ""))
        for name, field in model.model_fields.items()
    ]


def _key_table(keys: Iterable[Key], known: Iterable[str] = ()) -> str:
    """A table of keys; those that are ``known`` have their anchor elsewhere."""
    rows = []
    for k in keys:
        anchor = "" if k.name in known else f"{{ #{k.table}.{k.name} }}"
        rows.append((f"`{k.name}`{anchor}", k.type, k.default, k.meaning))
    return _markdown_table(("key", "type", "default", "meaning"), rows)


@cache
def _comments(model: type[BaseModel]) -> dict[str, str]:
    """The ``#:`` comment above each field, as one line."""
    lines = inspect.getsource(model).splitlines()
    (made,) = ast.parse("\n".join(lines)).body
    assert isinstance(made, ast.ClassDef)
    found = {}
    for statement in made.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        above: list[str] = []
        for line in reversed(lines[: statement.lineno - 1]):
            if not line.strip().startswith("#:"):
                break
            above.insert(0, line.strip().removeprefix("#:").strip())
        found[statement.target.id] = " ".join(above).replace("``", "`")
    return found


def _options(annotation: Any) -> list[Any]:
    """The alternatives of a type, None left out."""
    if get_origin(annotation) in (Union, UnionType):
        return [t for t in get_args(annotation) if t is not type(None)]
    return [annotation]


def _type(name: str, field: FieldInfo) -> str:
    if field.default == "contiguous":
        return ", ".join(f"`{kind}`" for kind in PARTITIONS) + ", or `FILE.py:Class`"
    if name == "strategy":
        return ", ".join(f"`{s}`" for s in strategies()) + ", or `FILE.py:Class`"
    shown = " or ".join(_type_name(option) for option in _options(field.annotation))
    return _with_bounds(shown, field.metadata)


def _type_name(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        metadata = [m for a in args[1:] for m in (a.metadata if isinstance(a, FieldInfo) else [a])]
        return _with_bounds(_type_name(args[0]), metadata)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin is tuple and args[-1] is ...:
        return f"list of {_type_name(args[0])}"
    if origin is tuple:
        return f"list of {len(args)}: " + ", ".join(_type_name(a) for a in args)
    if origin in (Union, UnionType):
        kinds = [get_args(model.model_fields["kind"].annotation)[0] for model in args]
        return "table of `kind` " + ", ".join(f"`{kind}`" for kind in kinds)
    return _NAMES[origin or annotation]


def _with_bounds(shown: str, metadata: list[Any]) -> str:
    for bound in metadata:
        for sign, kind in ((">", "gt"), ("≥", "ge"), ("<", "lt"), ("≤", "le")):
            if hasattr(bound, kind):
                shown += f", {sign}&nbsp;{_number(getattr(bound, kind))}"
        if isinstance(bound, annotated_types.MaxLen):
            shown += f", at most {bound.max_length}"
    return shown


def _number(value: float) -> str:
    powers = {2**32: "2³²", 2**31: "2³¹", 2**53: "2⁵³"}
    return powers.get(value, f"{value:,}") if isinstance(value, int) else f"{value:g}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    if field.default is None:
        return ""
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{str(value).lower() if isinstance(value, bool) else repr(value)}`".replace("'", '"')


# ---- commands


@dataclass(frozen=True)
class Parameter:
    """One argument or option of a command."""

    words: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Command:
    """One command, by what one types."""

    name: str
    help: str
    usage: str
    parameters: list[Parameter]


def commands() -> list[Command]:
    """Every command that does something."""
    return [_command(name, command) for name, command in leaves()]


def leaves() -> Iterator[tuple[str, Any]]:
    """Typer's command objects, by what one types."""

    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if hasattr(command, "commands"):
            for word, inner in command.commands.items():
                yield from below(f"{name} {word}", inner)
        else:
            yield name, command

    return below("fluffle", typer.main.get_command(app))


def commands_page() -> str:
    """All commands with their arguments and options."""
    parts = [
        "# Every command",
        _OF_COMMANDS,
    ]
    for command in commands():
        rows = [(p.words, p.default, p.meaning) for p in command.parameters]
        parts += [f"## {command.name}", command.help, f"```text\n{command.usage}\n```"]
        parts += [_markdown_table(("", "default", "meaning"), rows)] if rows else []
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: Any) -> Command:
    types = get_type_hints(command.callback)
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = [_word(p, types) for p in shown if p.param_type_name == "argument"]
    options = ["[OPTIONS]"] if len(shown) > len(arguments) else []
    usage = " ".join([name, *arguments, *options])
    parameters = [_parameter(p, types) for p in shown]
    return Command(name, inspect.cleandoc(command.help or ""), usage, parameters)


def _parameter(p: Any, types: dict[str, Any]) -> Parameter:
    flag = bool(getattr(p, "is_flag", False))
    if p.param_type_name == "argument":
        words = f"`{_word(p, types)}`"
    elif flag:
        words = ", ".join(f"`{option}`" for option in (*p.opts, *p.secondary_opts))
    else:
        words = ", ".join(f"`{option} {_word(p, types)}`" for option in p.opts)
    meaning = " ".join((p.help or "").split())
    if p.envvar:
        meaning = f"{meaning.removesuffix('.')}. Variable: `{p.envvar}`."
    silent = flag or p.multiple or p.default is None or p.default == ""
    default = "" if silent else f"`{p.default}`"
    return Parameter(words, "*required*" if p.required else default, meaning)


def _word(p: Any, types: dict[str, Any]) -> str:
    """What stands for its value."""
    kind = _options(types[p.name])[0]
    many = get_origin(kind) is list
    kind = get_args(kind)[0] if many else kind
    said = {Path: "PATH", int: "NUMBER", float: "NUMBER", str: "TEXT"}.get(kind, "VALUE")
    named = p.metavar or (p.name.upper() if p.param_type_name == "argument" else said)
    return f"{named} …" if many and p.param_type_name == "argument" else str(named)


def _markdown_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
