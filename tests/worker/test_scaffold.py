"""SCAFFOLD as a whole (arXiv 1910.06378, Algorithm 1): clients and server against plain NumPy.

The oracle knows of the run only who trained when, and in which order a client's examples came.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.ledger.writer import Ledger
from fluffle.schemas import Experiment, Plan, Tensors, tensors_sha256
from fluffle.schemas.tensors import model_groups
from fluffle.simulation.virtual import VirtualRun
from fluffle.worker.services.client_state import ClientStates
from tests.worker.softmax import Point, gradient, steps_of

pytestmark = pytest.mark.tensorflow

CLIENTS, EPOCHS, BATCH, RATE, SERVER_RATE = 6, 2, 8, 0.3, 0.9
ROUNDS: dict[str, Any] = {
    "experiment": {"versions": 6},
    "task": {"name": "digits-lr", "clients": CLIENTS},
    # 20 examples: two steps with 8 and one with 4 in each epoch.
    "partition": {"kind": "similarity", "similarity": 0.0, "examples_per_client": 20},
    "training": {"optimizer": "sgd", "learning_rate": RATE, "epochs": EPOCHS, "batch_size": BATCH},
    "participation": {"mode": "cohort", "sampling_rate": 0.5},
    "aggregation": {"strategy": "scaffold", "server_learning_rate": SERVER_RATE},
    "evaluation": {"every_updates": 0},
}


def by_hand(folder: Path, plan: Plan, start: Tensors, option: str) -> tuple[Point, Point]:
    """x and c after the rounds that the ledger tells of."""
    from fluffle.worker.tasks.registry import load_task

    task = load_task(plan)
    data = task.dataset()
    x = [start["trainable/0"].astype(float), start["trainable/1"].astype(float)]
    c = [np.zeros_like(a) for a in x]
    own = {str(i): [np.zeros_like(a) for a in x] for i in range(CLIENTS)}
    ledger = Ledger(folder)
    for version in range(1, ledger.latest_version() + 1):
        trained = ledger.query("SELECT client, turn FROM updates WHERE version = ?", version)
        moved = [np.zeros_like(a) for a in x]
        changed = [np.zeros_like(a) for a in x]
        for client, turn in trained:
            indices = task.client_indices(client)
            steps = steps_of(plan, client, turn, EPOCHS, indices, version - 1)
            y = [a.copy() for a in x]
            for step in steps:
                g = gradient(y, data, step)
                y = [
                    a - RATE * (b - mine + shared)
                    for a, b, mine, shared in zip(y, g, own[client], c, strict=True)
                ]
            if option == "I":
                following = gradient(x, data, indices)
            else:
                following = [
                    mine - shared + (a - b) / (len(steps) * RATE)
                    for mine, shared, a, b in zip(own[client], c, x, y, strict=True)
                ]
            moved = [m + b - a for m, a, b in zip(moved, x, y, strict=True)]
            changed = [t + a - b for t, a, b in zip(changed, following, own[client], strict=True)]
            own[client] = following
        x = [a + SERVER_RATE / len(trained) * m for a, m in zip(x, moved, strict=True)]
        c = [a + t / CLIENTS for a, t in zip(c, changed, strict=True)]
    ledger.close()
    return x, c


@pytest.mark.parametrize("option", ["I", "II"])
def test_a_whole_run_is_the_one_that_the_papers_equations_give(tmp_path: Path, option: str) -> None:
    # Given six rounds of three of six clients each, whose data have nothing in common
    from fluffle.worker.training.trainer import Trainer

    aggregation = {**ROUNDS["aggregation"], "control_option": option}
    experiment = Experiment.model_validate({**ROUNDS, "aggregation": aggregation})
    assert VirtualRun(experiment, tmp_path, run_id="run", slots=2).run() == "finished"
    # When the same rounds are done by hand
    plan = Plan.of(experiment, "delta")
    x, c = by_hand(tmp_path, plan, Trainer(plan).initial(), option)
    # Then model and control variate are the same, to float32
    state = Ledger(tmp_path).load().state
    assert state is not None
    for i in range(2):
        np.testing.assert_allclose(state[f"model/trainable/{i}"], x[i], atol=3e-6)
        np.testing.assert_allclose(state[f"server/control/{i}"], c[i], atol=3e-6)
    assert max(np.abs(a).max() for a in c) > 0.01


def plan_of(asks: Any = None, task: str = "mnist-mlp") -> Plan:
    tables = {
        "task": {"name": task, "clients": 100},
        "partition": {"examples_per_client": 50},
        "training": {"optimizer": "sgd", "learning_rate": 0.05, "epochs": 2, "batch_size": 16},
    }
    return Plan.of(Experiment.model_validate(tables), "delta", asks)


def control(base: Tensors, value: float) -> Tensors:
    return {
        k.replace("trainable", "control"): np.full_like(a, value)
        for k, a in base.items()
        if k.startswith("trainable/")
    }


@pytest.mark.parametrize("asks", ["control-variate-I", "control-variate-II"])
def test_the_first_round_trains_the_same_bytes_as_fedavg(asks: str) -> None:
    # Given a model with dropout, and control variates that are all zero
    from fluffle.worker.training.per_plan import make_trainer

    plain, scaffold = make_trainer(plan_of()), make_trainer(plan_of(asks))
    base = plain.initial()
    trained = scaffold.train({**base, **control(base, 0.0)}, "7", 1, None, {})
    # Then the client ends where it would have without them
    assert tensors_sha256(trained.tensors) == tensors_sha256(plain.train(base, "7", 1).tensors)
    # And again it is the same in every byte, with what goes along and what is kept
    again = scaffold.train({**base, **control(base, 0.0)}, "7", 1, None, {})
    for one, other in ((trained.extra, again.extra), (trained.state, again.state)):
        assert list(one) == list(control(base, 0.0))
        assert tensors_sha256(one) == tensors_sha256(other)


def test_a_client_whose_own_variate_is_lost_goes_uncorrected_and_counts_its_path_once() -> None:
    # Given a server whose c is not zero
    from fluffle.worker.training.per_plan import make_trainer

    plain, scaffold = make_trainer(plan_of()), make_trainer(plan_of("control-variate-II"))
    base = plain.initial()
    c = control(base, 0.01)
    # When a client trains that had a variate, which is not there
    trained = scaffold.train({**base, **c}, "7", 1, None, None)
    # Then its steps are FedAvg's, and c moves from c itself to the mean gradient on its path
    uncorrected = plain.train(base, "7", 1).tensors
    assert tensors_sha256(trained.tensors) == tensors_sha256(uncorrected)
    for key, change in trained.extra.items():
        weight = key.replace("control", "trainable")
        path = (base[weight].astype(float) - uncorrected[weight]) / (2 * 4 * 0.05)
        np.testing.assert_allclose(change, path - 0.01, atol=1e-5)
        np.testing.assert_allclose(trained.state[key], path, atol=1e-5)


def test_the_model_without_its_control_variate_is_an_error_and_not_a_guess() -> None:
    from fluffle.worker.training.per_plan import make_trainer

    scaffold = make_trainer(plan_of("control-variate-II"))
    with pytest.raises(ValueError, match="control variate"):
        scaffold.train(scaffold.initial(), "7", 1, None, {})


def test_neither_slots_nor_where_states_lie_change_a_byte(tmp_path: Path) -> None:
    # Given clients that are slow, lose turns and answer late, of which many train at once
    tables = {
        **ROUNDS,
        "experiment": {"versions": 12},
        "participation": {"concurrency": 4, "assignment_deadline_s": 8.0},
        "aggregation": {"strategy": "scaffold", "quorum": 2, "deadline_s": 20.0},
        "devices": {"dropout": 0.2, "delay": "exponential", "delay_s": 5.0, "latency_s": 0.1},
    }
    experiment = Experiment.model_validate(tables)
    seen = []
    for name, slots, memory_bytes in (("a", 1, 10**9), ("b", 2, 10**9), ("c", 4, 10_000)):
        states = ClientStates(tmp_path / f"states-{name}", memory_bytes)
        run = VirtualRun(experiment, tmp_path / name, run_id="run", slots=slots, states=states)
        assert run.run() == "finished"
        ledger = Ledger(tmp_path / name)
        state = ledger.load().state
        assert state is not None
        rows = ledger.query("SELECT weights_sha256, elapsed_s FROM versions ORDER BY version")
        seen.append((rows, tensors_sha256(state)))
        # There were late answers, and turns that went on from an earlier one's state
        stale = ledger.count("updates WHERE staleness > 0")
        again = ledger.count("updates u WHERE EXISTS (SELECT 1 FROM updates WHERE client = u.client"
                             " AND turn < u.turn AND turn > 0)")  # fmt: skip
        assert min(stale, again) >= 5
        ledger.close()
    assert seen[0] == seen[1] == seen[2]
    assert len({sha for sha, _ in seen[0][0]}) == 13


def test_the_hash_of_a_version_is_over_the_model_alone(tmp_path: Path) -> None:
    experiment = Experiment.model_validate({**ROUNDS, "experiment": {"versions": 2}})
    assert VirtualRun(experiment, tmp_path, run_id="run", slots=1).run() == "finished"
    ledger = Ledger(tmp_path)
    state = ledger.load().state
    assert state is not None
    model = model_groups({k.removeprefix("model/"): a for k, a in state.items()})
    ((sha,),) = ledger.query("SELECT weights_sha256 FROM versions WHERE version = 2")
    assert sha == tensors_sha256(model)
