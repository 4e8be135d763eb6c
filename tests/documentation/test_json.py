"""Every command has ``--json`` and its keys on docs/json.md, or a reason there why it has none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fluffle.commands.app import app
from tests.docs import reference, text_of
from tests.fluffle.runs import write_run

PAGE = "docs/json.md"


def listed(table: str) -> dict[str, str]:
    """Of each command in a table of the page what is said of it."""
    rows = re.findall(r"^\| (`fluffle .*?) \| (.*) \|$", table, re.M)
    return {name: said for names, said in rows for name in re.findall(r"`(fluffle [^`]+)`", names)}


WITH, WITHOUT = map(listed, text_of(PAGE).split("Others have none:"))


def test_every_command_is_on_the_page_with_its_json_or_with_a_reason() -> None:
    for name, command in reference.leaves():
        has = any("--json" in parameter.opts for parameter in command.params)
        assert (name in WITH) == has, name
        assert (name in WITHOUT) != has, name
    assert {*WITH, *WITHOUT} == {name for name, _ in reference.leaves()}


def printed(*words: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("command", ["show", "status"])
def test_what_is_printed_of_a_run_has_the_keys_of_the_page(tmp_path: Path, command: str) -> None:
    found = printed(command, write_run(tmp_path / "run"))
    wanted = {*re.findall(r"`(\w+)`", WITH[f"fluffle {command}"])}
    assert found.keys() == (wanted - {"broker"} if command == "status" else wanted)


def test_what_is_printed_of_data_has_the_keys_of_the_page() -> None:
    (first, *_) = printed("data", "list")["datasets"]
    assert {"datasets", *first} == {*re.findall(r"`(\w+)`", WITH["fluffle data list"])}
    words = ("data", "show", "synthetic", "--clients", "5")
    shares = printed(*words)
    assert shares.keys() == {*re.findall(r"`(\w+)`", WITH["fluffle data show"])}
    assert [sum(counts) for counts in shares["counts"]] == shares["examples"]
    assert len(shares["examples"]) == 5


def test_a_run_that_is_wrong_is_so_for_programs_too(tmp_path: Path) -> None:
    # Given a run of which a version's weights are gone
    folder = write_run(tmp_path / "run")
    for path in (folder / "weights").iterdir():
        path.unlink()
    # When it is checked for a program
    result = CliRunner().invoke(app, ["verify", str(folder), "--json"])
    # Then the exit code and the object say so
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"]) == (1, False)
    assert found.keys() == {*re.findall(r"`(\w+)`", WITH["fluffle verify"])}
    assert found["problems"]
