"""``fluffle init``: what it writes runs as it stands."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fluffle.broker.admin.node import Node
from fluffle.commands.init import KINDS
from tests.docs import example
from tests.integration.processes import Start, verified
from tests.integration.test_errors import refused
from tests.notebooks import execute

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


@pytest.mark.parametrize(("kind", "package"), [("pytorch", "torch"), ("sklearn", "sklearn")])
def test_a_task_of_another_framework_runs_without_a_change(
    start: Start, tmp_path: Path, kind: str, package: str
) -> None:
    pytest.importorskip(package)
    # Given a person who brings this framework
    assert start("init", tmp_path / "first", "--kind", kind).wait() == 0
    # When they run what they got
    out = tmp_path / "out"
    done = start("run", tmp_path / "first" / "experiment.toml", "--out", out, "--json")
    # Then it has learned
    assert done.wait() == 0, done.output
    assert done.summary()["failures"] == 0
    assert done.summary()["accuracy"] > 0.7
    verified(start, out)


@pytest.mark.tensorflow
@pytest.mark.slow
def test_a_strategy_runs_is_replayed_and_compared_as_its_readme_says(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a person with a formula
    assert start("init", tmp_path / "first", "--kind", "strategy").wait() == 0
    monkeypatch.chdir(tmp_path / "first")
    # When they type what the README says, on a shorter run
    for line in commands(Path("README.md")):
        shorter = ("--set", "experiment.versions=10") if line[0] in ("run", "sweep") else ()
        line = ["2" if word == "5" else word for word in line]  # seeds
        done = start(*line, *shorter)
        assert done.wait() == 0, done.output
    # Then their strategy has a row beside others
    assert "my_strategy.py:MyStrategy" in Path("runs/compared/table.csv").read_text()


@pytest.mark.rabbitmq
@pytest.mark.tensorflow
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sites_run_as_their_readme_says(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a person who has a RabbitMQ, and a terminal for each process
    assert start("init", tmp_path / "first", "--kind", "site").wait() == 0
    monkeypatch.chdir(tmp_path / "first")
    subprocess.run([sys.executable, "make_data.py"], check=True)
    with Node(tmp_path / "node") as node:
        monkeypatch.setenv("FLUFFLE_BROKER", node.url)
        # When they type what the README says
        *services, check = commands(Path("README.md"))
        started = [start(*line) for line in services]
        # Then the run comes to its end, and everybody leaves
        for one in started:
            assert one.wait() == 0, one.output
        assert start(*check).wait() == 0
    assert "accuracy here: global" in started[-1].output


@pytest.mark.tensorflow
@pytest.mark.slow
def test_a_notebook_runs_from_its_first_cell_to_its_last(start: Start, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    assert start("init", tmp_path / "first", "--kind", "notebook").wait() == 0
    shown = execute(tmp_path / "first" / "first.ipynb", tmp_path)
    assert "finished, version 40 of 40" in shown


def test_a_kind_that_there_is_not_is_refused_with_those_that_there_are(start: Start) -> None:
    assert refused(start("init", "x", "--kind", "java")).endswith(", ".join(KINDS))


def commands(readme: Path) -> list[list[str]]:
    """The lines of a README that call Fluffle, taken apart: of its blocks before any choice."""
    text = readme.read_text().split("## Make it yours")[0].split("## In earnest")[0]
    lines = [line for line in text.splitlines() if line.startswith("fluffle ")]
    return [shlex.split(line)[1:] for line in lines if not line.startswith("fluffle report")]


def test_its_task_is_under_forty_lines(start: Start, tmp_path: Path) -> None:
    assert start("init", tmp_path / "first").wait() == 0
    assert lines_of_code(tmp_path / "first" / "my_task.py") < 40


def test_it_overwrites_nothing(start: Start, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_task.py").write_text("precious\n")
    assert "mine is not empty: name a folder" in refused(start("init", tmp_path / "mine"))
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["precious\n"]
    assert "cannot be written" in refused(start("init", tmp_path / "mine" / "my_task.py"))
