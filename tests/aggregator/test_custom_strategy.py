"""A strategy from a user's file: what it may be, and what is said where it is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fluffle.aggregator.strategies.base import Strategy, model_of
from fluffle.aggregator.strategies.custom import keep_code
from fluffle.aggregator.strategies.registry import make_strategy
from fluffle.schemas import ClientUpdate, Experiment, Run, Tensors, UserError
from tests.docs import example

GOOD = example("docs/strategies.md", "class HalfLife(Strategy)")
WEIGHTS: Tensors = {"trainable/0": np.ones(3, np.float32), "non_trainable/0": np.ones(2)}


def update(values: float, examples: int = 10) -> ClientUpdate:
    return ClientUpdate(
        run=Run(run_id="r", run_started=0, epoch=1),
        update_id="u",
        client="c",
        turn=0,
        base_version=0,
        worker="w",
        sends="delta",
        examples=examples,
        tensors={key: np.full_like(array, values) for key, array in WEIGHTS.items()},
    )


def load(folder: Path, code: str, name: str = "own.py:HalfLife", **parameters: object) -> Strategy:
    (folder / "own.py").write_text(code)
    aggregation = {"strategy": name, "parameters": parameters}
    return make_strategy(Experiment.model_validate({"aggregation": aggregation}), folder)


@pytest.mark.parametrize("name", ["own.py:HalfLife", "own:HalfLife"])
def test_the_example_of_the_documentation_has_fewer_than_forty_lines_and_does_what_it_says(
    tmp_path: Path, name: str
) -> None:
    assert len(GOOD.splitlines()) < 40
    strategy = load(tmp_path, GOOD, name, versions=2.0)
    assert strategy.sends == "delta"

    # Given a fresh update, and one that is four versions old: a quarter of the weight
    state = strategy.accept(strategy.init(WEIGHTS), update(1.0), 0)
    state = strategy.step(strategy.accept(state, update(6.0), 4))

    # Then their weighted mean is (1 + 6 / 4) / (1 + 1 / 4) = 2
    assert model_of(state)["trainable/0"].tolist() == [3.0] * 3
    assert model_of(state)["non_trainable/0"].tolist() == [2.0] * 2


STEP = "        return next_version(state, formula)"
ACCEPT = "        return add_to_buffer(state, weight, update.tensors)"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("class HalfLife: pass", "HalfLife in own.py lacks init, accept, step"),
        (GOOD.replace("def step", "def close"), "HalfLife in own.py lacks step"),
        (GOOD.replace('"delta"', '"deltas"'), "lacks sends = 'delta' or 'weights'"),
        (GOOD.replace("HalfLife", "QuarterLife"), "own.py has no class HalfLife"),
        (
            "import fluffles",
            "own.py cannot be loaded: own.py, line 1: ModuleNotFoundError: No module named",
        ),
        ("x = 1\ndef f(:", "own.py cannot be loaded: own.py, line 2: SyntaxError"),
        (GOOD.replace("rate: float", "speed: float"), "[aggregation.parameters]: TypeError: "),
    ],
)
def test_a_file_that_holds_no_strategy_is_said_in_one_line(
    tmp_path: Path, code: str, says: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, code, rate=0.5)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    experiment = Experiment.model_validate({"aggregation": {"strategy": "none.py:HalfLife"}})
    with pytest.raises(UserError, match=r"there is no file .*none\.py"):
        make_strategy(experiment, tmp_path)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (GOOD.replace(ACCEPT, "        1 / 0"), "failed: own.py, line 20: ZeroDivisionError"),
        (GOOD.replace(ACCEPT, "        pass"), "HalfLife.accept in own.py returned NoneType"),
        (GOOD.replace(STEP, "        return {}"), "returned model/trainable/0 as nothing"),
        (
            GOOD.replace(STEP, "        return {**next_version(state, formula), 'server/x': 1}"),
            "HalfLife.step in own.py returned no array of numbers as server/x",
        ),
        (
            GOOD.replace(STEP, "        return {k: a * 1.5j for k, a in state.items()}"),
            "returned no array of numbers as model/trainable/0",
        ),
        (
            GOOD.replace(STEP, "        return {**state, 'Server': state['model/trainable/0']}"),
            "returned the key 'Server'",
        ),
    ],
)
def test_what_it_does_wrong_later_is_said_in_one_line_too(
    tmp_path: Path, code: str, says: str
) -> None:
    strategy = load(tmp_path, code)
    with pytest.raises(UserError) as caught:
        strategy.step(strategy.accept(strategy.init(WEIGHTS), update(1.0), 0))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_may_import_its_neighbours_and_shadows_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("RATE = 0.5")
    (tmp_path / "worker.py").write_text("raise RuntimeError('not this one')")
    code = "from neighbour import RATE\nimport fluffle.worker.tasks.task\n" + GOOD
    load(tmp_path, code.replace("= 1.0\n\n", "= RATE\n\n"))


def test_a_strategy_that_asks_clients_for_more_may_be_built_on_ours(tmp_path: Path) -> None:
    code = (
        "from fluffle.aggregator.strategies.scaffold import Scaffold\n"
        "class HalfLife(Scaffold):\n"
        "    def __init__(self): super().__init__(1.0, 5, 'II')\n"
    )
    strategy = load(tmp_path, code)
    assert getattr(strategy, "asks", None) == "control-variate-II"


def test_parameters_are_for_strategies_from_a_file() -> None:
    with pytest.raises(ValidationError, match="it goes with a strategy from a file"):
        Experiment.model_validate({"aggregation": {"strategy": "fedavg", "parameters": {}}})


def test_the_run_folder_keeps_the_file_that_the_run_began_with(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("before")
    (tmp_path / "run").mkdir()
    keep_code("own:HalfLife", tmp_path, tmp_path / "run")
    (tmp_path / "own.py").write_text("after")
    keep_code("own:HalfLife", tmp_path, tmp_path / "run")
    assert (tmp_path / "run" / "code" / "own.py").read_text() == "before"


def test_importing_what_a_strategy_is_made_of_imports_neither_tensorflow_nor_the_command_line() -> (
    None
):
    code = (
        "import sys; from fluffle import Strategy, next_version; "
        "sys.exit(bool({'tensorflow', 'keras', 'typer', 'pika'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
