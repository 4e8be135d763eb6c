"""The strategy of docs/strategies.md, from a file beside an experiment, in real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluffle.broker.admin.node import Node
from tests.docs import example
from tests.integration.processes import Start, verified

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow]

EXPERIMENT = """
[experiment]
name = "own"
versions = 12
[task]
name = "digits-lr"
clients = 5
[training]
optimizer = "sgd"
learning_rate = 0.5
[evaluation]
every_updates = 12
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """An experiment file in a folder of its own, with the strategy of the documentation."""
    folder = tmp_path / "mine"
    folder.mkdir()
    code = example("docs/strategies.md", "class HalfLife(Strategy)")
    (folder / "halflife.py").write_text(code)
    aggregation = example("docs/strategies.md", "halflife.py:HalfLife").replace(
        "quorum = 3", "quorum = 3\nkeep_updates = true"
    )
    (folder / "experiment.toml").write_text(EXPERIMENT + aggregation)
    return folder / "experiment.toml"


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_it_runs_under_both_clocks_and_is_replayed_from_the_run_folder(
    start: Start, own: Path, tmp_path: Path, clock: str
) -> None:
    out = tmp_path / "out"
    run = start("run", own, "--clock", clock, "--out", out, "--json")
    assert run.wait() == 0, run.output
    assert run.summary()["versions"] == 12
    assert run.summary()["accuracy"] > 0.6

    # And the run folder has all that is needed to recompute it
    (own.parent / "halflife.py").unlink()
    replayed = start("verify", out, "--replay")
    assert replayed.wait() == 0, replayed.output
    assert "replayed 12 versions from 37 kept updates" in replayed.output


def test_the_aggregator_alone_loads_it_and_workers_need_nothing_of_it(
    start: Start, rabbitmq: Node, federation: str, own: Path, tmp_path: Path
) -> None:
    where = ("--broker", rabbitmq.url, "--federation", federation)
    aggregator = start("aggregator", own, *where, "--out", tmp_path / "out", "--json")
    worker = start("worker", *where)
    evaluator = start("evaluator", *where)
    assert aggregator.wait() == 0, aggregator.output
    assert aggregator.summary()["versions"] == 12
    assert (worker.wait(), evaluator.wait()) == (0, 0), worker.output
    verified(start, tmp_path / "out")


@pytest.mark.parametrize("command", ["run", "aggregator"])
def test_one_that_does_not_load_is_said_before_anything_starts(
    start: Start, own: Path, tmp_path: Path, command: str
) -> None:
    (own.parent / "halflife.py").write_text("import nothing_like_it\n")
    more = ("--broker", "amqp://127.0.0.1:9/") if command == "aggregator" else ()
    one = start(command, own, "--out", tmp_path / "out", *more)
    assert one.wait() == 2, one.output
    (line,) = one.output.strip().splitlines()
    assert "cannot be loaded: halflife.py, line 1: ModuleNotFoundError" in line
    assert not (tmp_path / "out").exists()


def test_one_that_fails_in_the_middle_of_a_run_ends_it_with_one_line(
    start: Start, own: Path, tmp_path: Path
) -> None:
    code = (own.parent / "halflife.py").read_text()
    (own.parent / "halflife.py").write_text(code.replace("0.5 **", "[] **"))
    run = start("run", own, "--clock", "virtual", "--out", tmp_path / "out")
    assert run.wait() == 2, run.output
    assert "Traceback" not in run.output
    last = run.output.strip().splitlines()[-1]
    assert last.startswith("fluffle: the strategy failed: halflife.py, line 19: TypeError")


def test_parameters_are_set_from_the_command_line_as_well(
    start: Start, own: Path, tmp_path: Path
) -> None:
    setting = ("--set", "aggregation.parameters.speed=3")
    one = start("run", own, *setting, "--clock", "virtual", "--out", tmp_path / "out")
    assert one.wait() == 2, one.output
    assert "unexpected keyword argument 'speed'" in one.output
