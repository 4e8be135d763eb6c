"""``fluffle init``: what it writes runs as it stands."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.integration.processes import Start, verified
from tests.integration.test_errors import refused


def lines_of_code(path: Path) -> int:
    """Lines without comments, docstrings and blanks."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return len([line for line in ast.unparse(tree).splitlines() if line.strip()])


@pytest.mark.tensorflow
def test_what_it_writes_runs_without_a_change(start: Start, tmp_path: Path) -> None:
    # Given a person who has asked for a starting point
    folder = tmp_path / "first" / "try"
    init = start("init", folder)
    assert init.wait() == 0, init.output
    assert init.output.splitlines() == [
        *(str(folder / name) for name in ("my_task.py", "experiment.toml", "README.md")),
        f"next: fluffle run {folder / 'experiment.toml'}",
    ]
    # When they do what it says
    run = start("run", folder / "experiment.toml", "--out", tmp_path / "out", "--json")
    # Then it has learned
    assert run.wait() == 0, run.output
    summary = run.summary()
    assert (summary["versions"], summary["failures"]) == (40, 0)
    assert summary["accuracy"] > 0.85
    verified(start, tmp_path / "out")


def test_its_task_is_under_forty_lines(start: Start, tmp_path: Path) -> None:
    assert start("init", tmp_path / "first").wait() == 0
    assert lines_of_code(tmp_path / "first" / "my_task.py") < 40


def test_it_overwrites_nothing(start: Start, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_task.py").write_text("precious\n")
    assert "mine is not empty: name a folder" in refused(start("init", tmp_path / "mine"))
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["precious\n"]
    assert "cannot be written" in refused(start("init", tmp_path / "mine" / "my_task.py"))
