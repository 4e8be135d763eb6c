"""Strategies that decide by evaluations: their effect is in the ledger, once, and is replayed."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.strategies.base import listener_of
from fluffle.aggregator.strategies.fedbuff import FedBuff
from fluffle.aggregator.strategies.optimizers import Sgd
from fluffle.aggregator.strategies.plateau import Plateau
from fluffle.aggregator.strategies.registry import make_strategy
from fluffle.aggregator.strategies.staleness import constant
from fluffle.aggregator.verify import replay, verify
from fluffle.broker import Envelope
from fluffle.schemas import Evaluation, Experiment, UserError
from tests.aggregator.scripted import Federation

PLATEAU: dict[str, Any] = {
    "experiment": {"versions": 8},
    "aggregation": {"quorum": 2, "plateau_patience": 1, "plateau_factor": 0.5},
    "evaluation": {"every_updates": 1},
}


def measure(federation: Federation, version: int, accuracy: float, worker: str = "e") -> None:
    """An evaluation comes in."""
    coordinator = federation.service.coordinator
    assert coordinator is not None
    evaluation = Evaluation(
        run=coordinator.run,
        version=version,
        worker=worker,
        metrics={"accuracy": accuracy},
        examples=10,
    )
    federation.worker.submit(Envelope.of(evaluation))
    federation.settle()


def answer_all(federation: Federation, times: int) -> None:
    for _ in range(times):
        federation.answer(1)


def end(federation: Federation) -> None:
    """Answer every turn; nobody measures the last version."""
    for _ in range(50):
        federation.answer(1)
    federation.wait(61.0)
    assert federation.service.outcome == "finished"
    federation.service.close()


def heard(folder: Path) -> list[tuple[int, str, int]]:
    ledger = LedgerReader(folder)
    rows = ledger.query("SELECT version, metrics, told_for FROM heard ORDER BY version")
    ledger.close()
    return rows


def hashes(folder: Path) -> list[str]:
    ledger = LedgerReader(folder)
    assert verify(ledger) == []
    assert replay(ledger).problem is None
    rows = ledger.query("SELECT weights_sha256 FROM versions ORDER BY version")
    ledger.close()
    return [sha for (sha,) in rows]


def test_steps_get_shorter_by_the_factor_after_so_many_that_are_no_better() -> None:
    # Given patience 2 and factor 1/4 around a step along the delta, of 1 each time
    strategy = Plateau(FedBuff(Sgd(1.0), constant), 2, 0.25)
    state = strategy.init({"trainable/0": np.zeros(1, np.float32)})
    update: Any = SimpleNamespace(tensors={"trainable/0": np.ones(1, np.float32)}, examples=1)
    steps, before = [], 0.0
    for version, accuracy in enumerate([0.5, 0.6, 0.6, 0.55, 0.7, 0.1, 0.2]):
        state = strategy.on_evaluation(state, version, {"accuracy": accuracy})
        state = strategy.step(strategy.accept(state, update, 0))
        now = float(state["model/trainable/0"][0])
        steps.append(now - before)
        before = now
    # Then the step is a quarter after 0.6 and 0.55, and again after 0.1 and 0.2
    assert steps == [1, 1, 1, 0.25, 0.25, 0.25, 0.0625]


def test_an_evaluation_takes_effect_once_with_the_next_version_and_through_a_crash(
    tmp_path: Path,
) -> None:
    # Given a run with two evaluations, the second no better
    def run(name: str, crash: bool) -> list[str]:
        federation = Federation(tmp_path / name, **PLATEAU)
        answer_all(federation, 3)
        measure(federation, 0, 0.5)
        answer_all(federation, 2)
        measure(federation, 1, 0.4)
        measure(federation, 1, 0.9, worker="another")
        if crash:
            federation.die()
            federation.start()
            measure(federation, 1, 0.4)  # it had not heard that it had arrived
        end(federation)
        return hashes(tmp_path / name)

    undisturbed = run("plain", False)
    # When it is killed between an evaluation and the version that it takes effect in
    crashed = run("crashed", True)
    # Then each evaluation was told once, of one version one, and both runs can be replayed
    assert crashed[:3] == undisturbed[:3]
    for name in ("plain", "crashed"):
        assert heard(tmp_path / name) == [(0, '{"accuracy": 0.5}', 2), (1, '{"accuracy": 0.4}', 3)]
    # And it has made a difference
    without = Federation(
        tmp_path / "without",
        experiment={"versions": 8},
        aggregation={"quorum": 2},
        evaluation={"every_updates": 1},
    )
    end(without)
    assert hashes(tmp_path / "without")[:3] == undisturbed[:3]
    assert hashes(tmp_path / "without")[3] != undisturbed[3]


def test_a_replay_finds_an_evaluation_that_was_forged(tmp_path: Path) -> None:
    federation = Federation(tmp_path, **PLATEAU)
    answer_all(federation, 3)
    measure(federation, 0, 0.5)
    measure(federation, 1, 0.4)
    end(federation)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("UPDATE heard SET metrics = '{\"accuracy\": 0.9}' WHERE version = 1")
    ledger = LedgerReader(tmp_path)
    assert "version 2 comes out with other weights" in str(replay(ledger).problem)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("UPDATE heard SET told_for = 1 WHERE version = 1")
    assert verify(ledger) == ["the evaluation of version 1 took effect in version 1"]
    ledger.close()


OWN = """
from fluffle import Strategy, add_to_buffer, mean_of, next_version, with_model
import numpy as np

class Listening(Strategy):
    sends = "delta"
    def init(self, weights):
        return {**with_model(weights), "server/heard": np.array(0.0)}
    def accept(self, state, update, staleness):
        return add_to_buffer(state, 1.0, update.tensors)
    def on_evaluation(self, state, version, metrics):
        return {**state, "server/heard": np.array(metrics["accuracy"])}
    def step(self, state):
        heard = float(state["server/heard"])
        return next_version(state, lambda key, w, total: w + heard * mean_of(state, w, total))

class Broken(Listening):
    def on_evaluation(self, state, version, metrics):
        return None
"""


def test_a_strategy_of_ones_own_hears_of_evaluations_and_a_mistake_in_it_is_one_line(
    tmp_path: Path,
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    own: dict[str, Any] = {
        "experiment": {"versions": 4},
        "evaluation": {"every_updates": 1},
        "code": tmp_path,
    }
    federation = Federation(
        tmp_path / "run", aggregation={"strategy": "own.py:Listening", "quorum": 2}, **own
    )
    answer_all(federation, 3)
    measure(federation, 1, 0.5)
    end(federation)
    assert len(set(hashes(tmp_path / "run"))) == 5
    assert heard(tmp_path / "run") == [(1, '{"accuracy": 0.5}', 2)]
    broken = Federation(
        tmp_path / "broken", aggregation={"strategy": "own.py:Broken", "quorum": 2}, **own
    )
    answer_all(broken, 3)
    measure(broken, 1, 0.5)
    with pytest.raises(UserError, match=r"Broken.on_evaluation in own.py returned NoneType"):
        answer_all(broken, 2)


def test_privacy_around_it_does_not_keep_it_from_hearing() -> None:
    from fluffle.aggregator.strategies.private import Private

    inside = Plateau(FedBuff(Sgd(1.0), constant), 1, 0.5)

    class Around:
        inner = inside

    assert listener_of(Around()) is inside  # type: ignore[arg-type]
    assert "inner" in Private.__dataclass_fields__


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"evaluation": {"every_updates": 0}}, "evaluation.every_updates = 0"),
        ({"aggregation": {"plateau_factor": 0.1}}, "plateau_factor says nothing without"),
    ],
)
def test_what_says_nothing_is_refused(tables: dict[str, Any], said: str) -> None:
    plateau = {"aggregation": {"plateau_patience": 2}}
    with pytest.raises(ValueError, match=said):
        Experiment.model_validate({**plateau, **tables})


@pytest.mark.parametrize(
    ("aggregation", "said"),
    [
        ({"strategy": "scaffold"}, "does not go with scaffold"),
        (
            {"strategy": "fedavg", "deterministic": True, "on_deadline": "extend"},
            "no function of the seed",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(aggregation: dict[str, Any], said: str) -> None:
    experiment = Experiment.model_validate(
        {
            "training": {"optimizer": "sgd"},
            "participation": {"mode": "cohort"},
            "aggregation": {"plateau_patience": 1, **aggregation},
        }
    )
    with pytest.raises(UserError, match=said):
        make_strategy(experiment)
