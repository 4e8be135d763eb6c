"""A user's own files may have the names of our rooms: each finds its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.docs import example
from tests.packaging.conftest import Environment, run
from tests.packaging.test_distributions import ROOMS

pytestmark = pytest.mark.slow

#: Every public name of the front door, and the user's own modules beside it.
SCRIPT = f"""
import fluffle
from fluffle import Task

for name in fluffle.__all__:
    assert getattr(fluffle, name) is not None

import {", ".join(ROOMS)}
assert {{{", ".join(f"{room}.WHOSE" for room in ROOMS)}}} == {{"the user's"}}
print("found", Task.__module__)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: modules, and one package, with the names of our rooms."""
    mine = tmp_path / "mine"
    (mine / "schemas").mkdir(parents=True)
    for room in ROOMS:
        name = f"{room}/__init__.py" if room == "schemas" else f"{room}.py"
        (mine / name).write_text('WHOSE = "the user\'s"\n')
    return mine


def test_a_script_beside_them_runs(installed: Environment, folder: Path, tmp_path: Path) -> None:
    (folder / "script.py").write_text(SCRIPT)
    for cwd in (folder, tmp_path):
        printed = run(installed.python, folder / "script.py", cwd=cwd)
        assert printed == "found fluffle.worker.tasks.task\n"


def test_a_notebook_among_them_runs(installed: Environment, folder: Path) -> None:
    # A kernel has the folder that it is in at the front of its path, as -c has
    assert run(installed.python, "-c", SCRIPT, cwd=folder) == "found fluffle.worker.tasks.task\n"


def test_every_command_starts_among_them(installed: Environment, folder: Path) -> None:
    assert "aggregator" in run(installed.python, "-m", "fluffle", "--help", cwd=folder)


@pytest.mark.tensorflow
def test_a_task_and_a_strategy_among_them_run(installed: Environment, folder: Path) -> None:
    # Given a task and a strategy that import their neighbours
    run(installed.python, "-m", "fluffle", "init", "first", cwd=folder.parent)
    first = folder.parent / "first"
    neighbours = f"import {', '.join(ROOMS)}\nassert worker.WHOSE == schemas.WHOSE\n"
    task, strategy = first / "my_task.py", example("docs/strategies.md", "class HalfLife(Strategy)")
    task.write_text(task.read_text() + neighbours)
    (first / "halflife.py").write_text(strategy + neighbours)
    shutil.copytree(folder, first, dirs_exist_ok=True)
    # When they are used in a run
    command = ("run", "experiment.toml", "--set", "experiment.versions=2", "--json")
    own = ("--set", "aggregation.strategy=halflife.py:HalfLife")
    printed = run(installed.python, "-m", "fluffle", *command, *own, cwd=first)
    # Then it ends as any other
    assert json.loads(printed.splitlines()[-1])["versions"] == 2


@pytest.mark.tensorflow
def test_an_experiment_runs_by_its_name_without_a_checkout(
    installed: Environment, tmp_path: Path
) -> None:
    # Given an installed wheel, and a folder with nothing in it
    shorter = ("--set", "experiment.versions=2", "--clock", "virtual")
    # When a person runs an experiment that Fluffle brings
    words = ("run", "synthetic", *shorter, "--out", "first", "--json")
    printed = run(installed.python, "-m", "fluffle", *words, cwd=tmp_path)
    # Then it is the one of the tree
    assert json.loads(printed.splitlines()[-1])["versions"] == 2
    kept = (tmp_path / "first" / "experiment.toml").read_text()
    assert 'name = "synthetic-lr"' in kept
