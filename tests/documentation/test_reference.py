"""The reference has every experiment key and every command, each with what it means."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel

from fluffle.aggregator.strategies.custom import CustomParameters
from fluffle.schemas.aggregation import strategies
from fluffle.schemas.experiment import Experiment
from tests.docs import reference


class Bare(BaseModel):
    """A table that is badly documented."""

    #: What is said.
    said: int = 1
    silent: int = 2


def keys_of(schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> set[str]:
    """Every key of a JSON schema: a second way to find them, which shares no code with the page."""
    found = set()
    for name, value in schema.get("properties", {}).items():
        below: set[str] = set()
        for reference_ in re.findall(r"#/\$defs/(\w+)", str(value)):
            below |= keys_of(definitions[reference_], definitions, f"{path}{name}.")
        found |= below or {f"{path}{name}"}
    return found


def test_every_key_of_the_experiment_file_is_in_the_reference() -> None:
    schema = Experiment.model_json_schema()
    wanted = keys_of(schema, schema["$defs"])
    for table in [*strategies().values(), CustomParameters]:
        wanted |= keys_of(table.model_json_schema(), {}, "aggregation.")
    assert wanted == {f"{key.table}.{key.name}" for key in reference.experiment_keys()}
    page = reference.experiment_page()
    assert all(f"{{ #{name} }}" in page for name in wanted - {"update.kind"})


@pytest.mark.parametrize("key", reference.experiment_keys(), ids=lambda k: f"{k.table}.{k.name}")
def test_every_key_says_its_type_and_what_it_means(key: reference.Key) -> None:
    assert key.type
    assert len(key.meaning) > 5, f"no `#:` comment above {key.name} in schemas/"
    assert "#:" not in key.meaning


def test_bounds_and_defaults_are_those_that_hold() -> None:
    keys = {f"{key.table}.{key.name}": key for key in reference.experiment_keys()}
    assert keys["task.clients"].type == "integer, ≥&nbsp;0, ≤&nbsp;1,000,000"
    assert keys["task.clients"].default == "`10`"
    assert keys["devices.dropout"].type == "number, ≥&nbsp;0, <&nbsp;1"
    assert keys["participation.pause_s"].default == "`[0.0, 0.0]`"
    assert keys["cost.price_per_worker_hour"].default == "*required*"
    assert keys["aggregation.deterministic"].default == "`false`"
    assert "`krum`" in keys["aggregation.strategy"].type


def test_every_strategy_has_its_own_keys_in_the_reference() -> None:
    own = {name: {key.name for key in keys} for name, keys in reference.strategy_keys()}
    assert own["fednova"] == set()
    assert own["fedavg"] == {"weighting", "staleness", "staleness_a", "staleness_b"}
    assert own["trimmed-mean"] - own["median"] == {"trim"}
    page = reference.experiment_page()
    section = page.split('### strategy = "trimmed-mean"')[1].split("###")[0]
    assert "| `trim`{ #aggregation.trim } | number, >&nbsp;0, <&nbsp;0.5 | `0.2` |" in section


def test_every_command_is_in_the_reference_with_all_that_its_help_shows() -> None:
    typed = {command.name for command in reference.commands()}
    assert {"fluffle run", "fluffle worker", "fluffle data fetch", "fluffle broker users"} <= typed
    page = reference.commands_page()
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    for name, command in reference.leaves():
        for parameter in command.params:
            for word in (w for w in parameter.opts if w.startswith("--")):
                assert bool(re.search(rf"`{word}[ `]", sections[name])) != parameter.hidden


@pytest.mark.parametrize("command", reference.commands(), ids=lambda c: c.name)
def test_every_command_and_option_says_what_it_does(command: reference.Command) -> None:
    assert len(command.help) > 10
    for parameter in command.parameters:
        assert len(parameter.meaning) > 5, f"{command.name} {parameter.words} has no help"


def test_a_key_without_a_comment_would_be_seen() -> None:
    said, silent = reference._keys_of("bare", Bare)
    assert said.meaning == "What is said."
    assert silent.meaning == ""
