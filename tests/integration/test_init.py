"""``fluffle init``: what it writes runs as it stands."""

from __future__ import annotations

import ast
import shlex
import sys
from pathlib import Path

import pytest

from tests.docs import example
from tests.integration.processes import Start, verified
from tests.integration.test_errors import refused

PAGE = "docs/own-task.md"


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
def test_what_it_writes_runs_without_a_change(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a person who has asked for a starting point
    monkeypatch.chdir(tmp_path)
    init, run = (shlex.split(line)[1:] for line in example(PAGE, "fluffle init").splitlines())
    folder = Path("first")
    begun = start(*init)
    assert begun.wait() == 0, begun.output
    assert begun.output.splitlines() == [
        *(str(folder / name) for name in ("my_task.py", "experiment.toml", "README.md")),
        f"next: {sys.executable} -m fluffle run {folder / 'experiment.toml'}",
    ]
    # When they do what it says
    done = start(*run, "--out", "out", "--json")
    # Then it has learned
    assert done.wait() == 0, done.output
    summary = done.summary()
    assert (summary["versions"], summary["failures"]) == (40, 0)
    assert summary["accuracy"] > 0.85
    verified(start, Path("out"))


def test_its_task_is_under_forty_lines(start: Start, tmp_path: Path) -> None:
    assert start("init", tmp_path / "first").wait() == 0
    assert lines_of_code(tmp_path / "first" / "my_task.py") < 40


def test_it_overwrites_nothing(start: Start, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_task.py").write_text("precious\n")
    assert "mine is not empty: name a folder" in refused(start("init", tmp_path / "mine"))
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["precious\n"]
    assert "cannot be written" in refused(start("init", tmp_path / "mine" / "my_task.py"))
