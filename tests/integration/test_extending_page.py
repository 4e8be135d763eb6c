"""docs/extending.md, run as it stands; the toys in interfaces' docstrings; installed packages."""

from __future__ import annotations

import doctest
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.strategies.registry import make_strategy
from fluffle.schemas import Experiment, Plan, UserError, extensions, transforms
from fluffle.schemas.tensors import spec
from fluffle.schemas.transforms import Draws
from tests.docs import example, text_of
from tests.integration.processes import Start

PAGE = "docs/extending.md"
FILES = {
    "mine.toml": 'name = "mine"',
    "plain.py": "class Plain(Strategy)",
    "dice.py": "RECIPE = Recipe(",
    "sizes.py": "class Growing:",
    "signs.py": "class Signs:",
    "near.py": "class Near(Algorithm)",
    "half.py": "class HalfIsEnough(Trigger)",
    "fewest.py": "class Fewest(Selection)",
    "lines.py": "class Lines:",
}
INTERFACES = [
    "fluffle.aggregator.selections.base",
    "fluffle.aggregator.strategies.base",
    "fluffle.aggregator.triggers.base",
    "fluffle.schemas.transforms.base",
    "fluffle.tracking.tracker",
    "fluffle.worker.datasets.recipe",
    "fluffle.worker.tasks.custom_partition",
    "fluffle.worker.tasks.task",
]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The folder that the page makes."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, containing in FILES.items():
        (folder / name).write_text(example(PAGE, containing), encoding="utf-8")
    return folder


@pytest.fixture
def package(tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The classes of the page in an installed package."""
    for name in ("plain", "signs", "near"):
        (mine / f"{name}.py").rename(tmp_path / f"others_{name}.py")
    info = tmp_path / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fluffle.strategies]\nplain = others_plain:Plain\nbroken = others_none:Plain\n"
        "[fluffle.update_steps]\nsigns = others_signs:Signs\n"
        "[fluffle.algorithms]\nnear = others_near:Near\nodd = others_plain:Plain\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    extensions._entry_points.cache_clear()
    yield
    extensions._entry_points.cache_clear()


@pytest.mark.tensorflow
@pytest.mark.slow
def test_every_kind_of_extension_of_the_page_runs(
    start: Start, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the files of the page
    monkeypatch.chdir(tmp_path)
    run, fetch = example(PAGE, "fluffle run mine/mine.toml").splitlines()
    # When its commands are typed
    process = start(*run.split()[1:])
    assert process.wait() == 0, process.output
    monkeypatch.setenv("FLUFFLE_DATA", str(tmp_path / "data"))
    process = start(*fetch.split()[1:])
    assert process.wait() == 0, process.output
    # Then the run has made its versions, and the tracker has their curves
    lines = (tmp_path / "mine.csv").read_text().splitlines()
    assert lines[-1] == "finished"
    accuracies = [float(line.split(",")[2]) for line in lines if line.startswith("evaluation/acc")]
    assert accuracies[-1] > 0.5
    # And an update was a quarter of the model, or little more
    (sent,) = {float(line.split(",")[2]) for line in lines if line.startswith("run/bytes_up,10,")}
    assert sent < 50 * (650 * 4) / 3
    # And the data set is in the cache
    assert np.load(next((tmp_path / "data").rglob("x_train.npy"))).shape == (600, 2)


@pytest.mark.parametrize("module", INTERFACES)
def test_the_toy_in_an_interfaces_docstring_runs(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted
    assert not result.failed


@pytest.mark.usefixtures("package")
def test_what_an_installed_package_offers_has_a_name() -> None:
    # Given a package with entry points
    tables = {
        "aggregation": {"strategy": "plain", "parameters": {"rate": 0.5}},
        "update": [{"kind": "signs"}],
    }
    # When an experiment names them
    experiment = Experiment.model_validate(tables)
    strategy = make_strategy(experiment)
    # Then they are what is used
    model = {"trainable/0": np.ones((2, 3), np.float32)}
    assert strategy.init(model).keys() == {"model/trainable/0"}
    rng = np.random.default_rng(0)
    sent, _ = transforms.apply(experiment.update or (), model, Draws(rng, rng), {})
    assert sent.keys() == {"trainable/0", "scale/0"}
    back = transforms.restore(experiment.update or (), sent, spec(model))
    np.testing.assert_array_equal(back["trainable/0"], model["trainable/0"])


@pytest.mark.tensorflow
@pytest.mark.usefixtures("package")
def test_an_installed_packages_algorithm_is_what_clients_train_with() -> None:
    from fluffle.worker.training.algorithms.registry import algorithm_of, check

    def named(name: str, **training: Any) -> Experiment:
        return Experiment.model_validate({"training": {"algorithm": name, **training}})

    # When an experiment names it, then clients have it, made with its parameters
    near = named("near", algorithm_parameters={"mu": 0.5}, keep_state=True)
    made = algorithm_of(Plan.of(near, "delta"))
    assert (type(made).__name__, vars(made)) == ("Near", {"mu": 0.5})
    # And what cannot be made is said, and by the way of where it is from
    with pytest.raises(UserError, match=r"with \[training.algorithm_parameters\]: .*unexpected"):
        check(named("near", algorithm_parameters={"my": 0.5}).training)
    with pytest.raises(UserError, match=r"odd in the installed package is no fluffle\.Algorithm"):
        check(named("odd").training)
    with pytest.raises(ValueError, match=r"none of .*, near, odd, .*did you mean near\?"):
        named("neat")
    # And a run that was made with it can be read where it is not installed
    plan = Plan.of(near, "delta")
    extensions._entry_points.cache_clear()
    sys.path.pop(0)
    assert Experiment.stored(near.model_dump_json()) == near
    with pytest.raises(UserError, match="there is no algorithm 'near' on this machine"):
        algorithm_of(plan)


@pytest.mark.usefixtures("package")
def test_a_package_that_does_not_load_and_a_name_that_is_almost_right_are_said() -> None:
    broken = Experiment.model_validate
    with pytest.raises(UserError, match="a strategy broken cannot be loaded: ModuleNotFoundError"):
        broken({"aggregation": {"strategy": "broken"}})
    with pytest.raises(ValueError, match=r"did you mean signs\?"):
        Experiment.model_validate({"update": [{"kind": "sings"}]})


@pytest.mark.parametrize(
    ("tables", "code", "says"),
    [
        (
            "kind = 'own.py:Own'",
            "class Own: pass",
            "own.py:Own lacks spec, apply, restore",
        ),
        ("kind = 'own.py:Other'", "class Own: pass", "has no Other"),
        ("kind = 'none.py:Own'", "", "there is no file"),
        ("kind = '../own.py:Own'", "", "lies outside"),
        (
            "kind = 'own.py:Own'\nparameters = { a = 1 }",
            "class Own:\n    def __init__(self, b=1): pass",
            "cannot make a step own.py:Own: ",
        ),
    ],
)
def test_a_step_that_cannot_be_is_said_in_one_line_before_anything_starts(
    start: Start, tmp_path: Path, tables: str, code: str, says: str
) -> None:
    (tmp_path / "own.py").write_text(code)
    (tmp_path / "own.toml").write_text(f"[task]\nname = 'digits-lr'\n[[update]]\n{tables}")
    process = start("run", tmp_path / "own.toml", "--out", tmp_path / "out")
    assert process.wait() == 2
    assert says in process.output
    assert "Traceback" not in process.output


def test_what_an_own_step_cannot_restore_is_rejected(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(extensions.FOLDER, str(mine))
    (mine / "bad.py").write_text(
        (mine / "signs.py").read_text().replace("back = {}", "raise KeyError(1)")
    )
    steps = Experiment.model_validate({"update": [{"kind": "bad.py:Signs"}]}).update or ()
    model = {"trainable/0": np.ones(2, np.float32)}
    rng = np.random.default_rng(0)
    sent, _ = transforms.apply(steps, model, Draws(rng, rng), {})
    with pytest.raises(ValueError, match="KeyError"):
        transforms.restore(steps, sent, spec(model))


def test_the_table_names_every_group_of_entry_points() -> None:
    points = [p for p in vars(extensions).values() if isinstance(p, extensions.ExtensionPoint)]
    assert set(re.findall(r"`(fluffle\.\w+)` \|", text_of(PAGE))) == {p.group for p in points}
