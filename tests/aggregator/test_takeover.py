"""One valid message never takes the model over, nor ends the run of all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.sums import rejected
from fluffle.aggregator.verify import replay, verify
from fluffle.broker import Envelope
from fluffle.schemas import Assignment, Tensors, UserError, decode
from fluffle.schemas.aggregation import strategies
from tests.aggregator.scripted import Federation
from tests.aggregator.test_replay import LARGER, NEEDS


def attack(federation: Federation, scale: float = 1.0, **changed: Any) -> None:
    """The next turn's answer is ``scale`` times as long, or changed otherwise."""
    delivery = federation.worker.receive_assignment(0.0)
    assert delivery is not None
    turn = decode(delivery.envelope.body)
    assert isinstance(turn, Assignment)
    update = federation.update(turn)
    tensors = {
        key: np.asarray(array * np.asarray(scale, array.dtype))
        if array.dtype.kind == "f"
        else array
        for key, array in update.tensors.items()
    }
    changed = {"tensors": tensors, **changed}
    federation.worker.submit(Envelope.of(update.model_copy(update=changed)))
    federation.worker.ack(delivery)
    federation.settle()


def rules_of(strategy: str) -> dict[str, Any]:
    """With what the strategy cannot do without."""
    larger = {"quorum": 5} if strategy in LARGER else {}
    return {"strategy": strategy, **larger, **NEEDS.get(strategy, {})}


def reasons(folder: Path) -> dict[str, int]:
    ledger = LedgerReader(folder)
    try:
        return rejected(ledger)
    finally:
        ledger.close()


@pytest.mark.parametrize("strategy", list(strategies()))
@pytest.mark.parametrize("before", [1, 25])
def test_an_update_of_wild_length_is_rejected(tmp_path: Path, strategy: str, before: int) -> None:
    # Given a run of any strategy, at its beginning or well into it
    rules = rules_of(strategy)
    federation = Federation(tmp_path, experiment={"versions": 60}, aggregation=rules)
    for _ in range(before):
        federation.answer(1)
    # When one of its clients has trained the newest, and sends values just within the finite ones
    coordinator = federation.service.coordinator
    assert coordinator is not None
    attack(federation, 1e28, base_version=coordinator.version)
    # Then it counts for nothing, and the run goes on
    assert reasons(tmp_path)["too_long"] == 1
    federation.finish()
    ledger = LedgerReader(tmp_path)
    assert verify(ledger) == []
    assert replay(ledger).problem is None
    state = ledger.store.read(ledger.query("SELECT file FROM versions ORDER BY 1 DESC")[0][0])
    assert all(np.abs(array).max() < 1e6 for array in state.values() if array.dtype.kind == "f")


@pytest.mark.parametrize(("before", "examples"), [(1, 2**50), (25, 2**50), (25, 1_000_000)])
def test_a_claim_of_wildly_many_examples_is_rejected(
    tmp_path: Path, before: int, examples: int
) -> None:
    # Given a run that weighs updates by examples: some 20 each
    rules = {"strategy": "fedavg", "weighting": "examples"}
    federation = Federation(tmp_path, experiment={"versions": 60}, aggregation=rules)
    for _ in range(before):
        federation.answer(1)
    # When
    attack(federation, examples=examples)
    # Then
    assert reasons(tmp_path) == {"too_many_examples": 1}


def test_what_is_too_long_is_known_again_after_a_restart(tmp_path: Path) -> None:
    # Given a run with an open buffer
    federation = Federation(tmp_path, experiment={"versions": 60})
    for _ in range(26):
        federation.answer(1)
    bounds = []
    for _ in range(2):
        coordinator = federation.service.coordinator
        assert coordinator is not None
        recent = coordinator.admission.recent
        known = [[fold.norms for fold in folds] for folds in recent._versions]
        bounds.append((known, recent.most_examples()))
        # When its aggregator dies
        federation.die()
        federation.start()
    # Then the next one knows the same of what came before
    assert bounds[0] == bounds[1]
    assert sum(map(len, bounds[0][0])) >= 20


def test_who_wants_no_bounds_has_none(tmp_path: Path) -> None:
    # Given
    off = {"norm_factor": 0, "examples_factor": 0, "max_examples": 2**40}
    federation = Federation(tmp_path, experiment={"versions": 60}, admission=off)
    for _ in range(25):
        federation.answer(1)
    # When
    attack(federation, 1e9, examples=2**40)
    # Then
    assert reasons(tmp_path) == {}


ODD: dict[str, Tensors] = {
    "nothing to train": {"non_trainable/0": np.zeros(3, np.float32)},
    "other groups": {"a/b/c/d": np.zeros(3, np.float32)},
    "a group beside": {"trainable/0": np.ones(3, np.float32), "control/0": np.ones(3, np.float32)},
    "deep names": {"trainable/0/1/2": np.zeros(3, np.float32)},
    "nothing in it": {"trainable/0": np.zeros((0, 4), np.float32)},
    "an empty one beside": {
        "trainable/0": np.ones(3, np.float32),
        "trainable/1": np.zeros((0, 4), np.float32),
    },
    "integers beside": {"trainable/0": np.ones(3, np.float32), "trainable/1": np.ones(2, np.int64)},
    "integers": {"trainable/0": np.zeros(3, np.int64)},
    "truth values": {"trainable/0": np.zeros(3, np.bool_)},
    "a scalar": {"trainable/0": np.ones((), np.float32)},
    "a scalar counter": {
        "trainable/0": np.ones(3, np.float32),
        "non_trainable/0": np.zeros((), np.int64),
    },
    "float16": {"trainable/0": np.ones(3, np.float16)},
    "float64": {"trainable/0": np.ones(3, np.float64)},
    "one number": {"trainable/0": np.ones((1, 1, 1), np.float32)},
}


@pytest.mark.parametrize("strategy", list(strategies()))
@pytest.mark.parametrize("odd", ODD)
def test_odd_first_weights_are_refused_or_make_a_run(
    tmp_path: Path, strategy: str, odd: str
) -> None:
    # Given a worker that answers the call for version 0 with this
    rules = rules_of(strategy)
    federation = Federation(tmp_path, experiment={"versions": 2}, aggregation=rules)
    coordinator = federation.service.coordinator
    assert coordinator is not None
    for _ in range(3):
        if federation.service.outcome is None and coordinator.phase == "initialising":
            attack(federation, tensors=ODD[odd])
    # Then it is of use, and version 1 is made of such updates
    if federation.service.outcome is None:
        while coordinator.version < 1:
            tensors = {
                key: np.ones(shape, dtype)
                for key, (dtype, shape) in coordinator.buffer.expected.items()
            }
            attack(federation, tensors=tensors)
        assert reasons(tmp_path) == {}
        federation.die()
        federation.start()
    else:  # or the run fails with one line, and says why
        ledger = LedgerReader(tmp_path)
        assert ledger.meta["status"] == "failed"
        assert "the first weights are of no use (no_model: " in ledger.meta["detail"]
        assert reasons(tmp_path) == {"no_model": 3}


def test_odd_weights_in_a_file_are_one_line(tmp_path: Path) -> None:
    from fluffle.aggregator.service import AggregatorService
    from fluffle.broker.embedded import EmbeddedBroker
    from fluffle.schemas import Experiment

    port = EmbeddedBroker().aggregator()
    port.lead(1.0)
    odd = ODD["other groups"]
    one = AggregatorService(Experiment(), port, tmp_path, run_id="run", initial=odd)
    with pytest.raises(UserError, match="--initial: these are no weights of a model"):
        one.begin()
