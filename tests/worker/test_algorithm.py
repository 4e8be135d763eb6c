"""A client's algorithm of one's own: its loss in the graph, its state, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fluffle.aggregator.ledger.writer import Ledger
from fluffle.schemas import Experiment, Plan, UserError
from fluffle.simulation.virtual import VirtualRun
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.tasks import custom
from tests.docs import example

CODE = '''
import numpy as np
from fluffle import After, Algorithm

class Counting(Algorithm):
    """Pulls along what the client has counted: its turns so far."""

    def before(self, turn):
        (count,) = (turn.state or {}).values() or [np.float32(0)]
        return {"count": [np.float32(count)]}

    def gradients(self, gradients, context):
        (count,) = context["count"]
        return [g * (1 + count) for g in gradients]

    def after(self, turn, local):
        (count,) = (turn.state or {}).values() or [np.float32(0)]
        return After(keep={"own/count": np.asarray(count + 1, np.float32)})

class Broken(Algorithm):
    def loss(self, model, batch, context):
        return context.nothing
'''


@pytest.fixture(autouse=True)
def _beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_algorithm.py").write_text(CODE)
    (tmp_path / "near.py").write_text(example("docs/algorithms.md", "class Near"))
    monkeypatch.setenv(custom.FOLDER, str(tmp_path))


def tables(**training: Any) -> dict[str, Any]:
    return {
        "experiment": {"versions": 4},
        "task": {"name": "digits-lr", "clients": 4},
        "partition": {"examples_per_client": 20},
        "training": {"optimizer": "sgd", "learning_rate": 0.1, "epochs": 2, **training},
        "participation": {"mode": "cohort"},
        "aggregation": {"strategy": "fedbuff"},
        "evaluation": {"every_updates": 0},
    }


def plan_of(**training: Any) -> Plan:
    return Plan.of(Experiment.model_validate(tables(**training)), "delta")


@pytest.mark.tensorflow
def test_a_loss_of_ones_own_is_what_is_trained_on() -> None:
    # Given FedProx in a user's file, its term in the loss
    from fluffle.worker.training.per_plan import make_trainer

    own = make_trainer(plan_of(algorithm="near.py:Near", algorithm_parameters={"mu": 2.0}))
    ours, plain = make_trainer(plan_of(proximal_mu=2.0)), make_trainer(plan_of())
    base = ours.initial()
    # Then it trains what FedProx does, whose term is in the gradients
    expected = ours.train(base, "1", 1).tensors
    found = own.train(base, "1", 1)
    for name, values in plain.train(base, "1", 1).tensors.items():
        np.testing.assert_allclose(found.tensors[name], expected[name], atol=1e-6)
        assert np.abs(values - expected[name]).max() > 1e-4
    # And a strategy that asks for nothing hears nothing of it
    assert not found.extra
    assert not found.state


@pytest.mark.tensorflow
def test_what_a_client_keeps_is_there_in_its_next_turn(tmp_path: Path) -> None:
    # Given an algorithm whose clients count their turns
    counting = tables(algorithm="own_algorithm.py:Counting", keep_state=True)
    hashes = []
    for name, slots in (("a", 1), ("b", 2)):
        states = ClientStates(tmp_path / f"states-{name}", 0)
        run = VirtualRun(
            Experiment.model_validate(counting),
            tmp_path / name,
            run_id="run",
            slots=slots,
            states=states,
        )
        assert run.run() == "finished"
        # Then each has counted the four versions, and slots change no byte
        ledger = Ledger(tmp_path / name)
        rows = ledger.query("SELECT weights_sha256 FROM versions ORDER BY version")
        ledger.close()
        hashes.append(rows)
        kept = [
            state
            for path in (tmp_path / f"states-{name}" / "run" / "2").iterdir()
            if (state := states.load("run", "2", path.name.partition("-")[0])) is not None
        ]
        assert max(float(state["own/count"]) for state in kept) == 4
    assert hashes[0] == hashes[1]
    # And what was counted was in the training
    plain = VirtualRun(Experiment.model_validate(tables()), tmp_path / "c", run_id="r", slots=1)
    assert plain.run() == "finished"
    ledger = Ledger(tmp_path / "c")
    without = ledger.query("SELECT weights_sha256 FROM versions ORDER BY version")
    ledger.close()
    assert without[:2] == hashes[0][:2]  # version 1 comes of clients that have counted nothing
    assert not set(without[2:]) & set(hashes[0][2:])


@pytest.mark.tensorflow
def test_what_is_wrong_in_it_is_one_line_that_names_the_file() -> None:
    from fluffle.worker.training.per_plan import make_trainer

    broken = make_trainer(plan_of(algorithm="own_algorithm.py:Broken"))
    with pytest.raises(UserError, match=r"the algorithm failed: own_algorithm.py, line 22: Attrib"):
        broken.train(broken.initial(), "1", 1)
    with pytest.raises(UserError, match=r"with \[training.algorithm_parameters\]: .*unexpected"):
        make_trainer(plan_of(algorithm="near.py:Near", algorithm_parameters={"my": 1.0}))
    with pytest.raises(UserError, match="no file"):
        make_trainer(plan_of(algorithm="elsewhere.py:Near"))
    with pytest.raises(UserError, match="lies outside"):
        make_trainer(plan_of(algorithm="../../near.py:Near"))


@pytest.mark.parametrize(
    ("training", "strategy", "why"),
    [
        ({"algorithm": "fedprx"}, "fedbuff", "did you mean fedprox"),
        ({"algorithm": "scaffold"}, "fedbuff", "set aggregation.strategy = 'scaffold'"),
        ({"algorithm": "fedprox"}, "fedbuff", "needs training.proximal_mu"),
        ({"algorithm": "a.py:B"}, "scaffold", "brings its clients' algorithm with it"),
        ({"algorithm": "a.py:B", "proximal_mu": 1.0}, "fedbuff", "is fedprox's"),
        ({"algorithm_parameters": {"mu": 1.0}}, "fedbuff", "without an algorithm"),
        ({"keep_state": True}, "fedbuff", "goes with training.algorithm"),
        (
            {"algorithm": "fedprox", "proximal_mu": 1.0, "algorithm_parameters": {"mu": 1.0}},
            "fedbuff",
            "algorithm_parameters.mu",
        ),
    ],
)
def test_what_does_not_belong_is_refused(training: Any, strategy: str, why: str) -> None:
    document = {**tables(**training), "aggregation": {"strategy": strategy}}
    with pytest.raises(ValidationError, match=why):
        Experiment.model_validate(document)
