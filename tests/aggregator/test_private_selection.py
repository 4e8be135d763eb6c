"""Who takes part where privacy depends on it: rests between versions, and cohorts by chance."""

from __future__ import annotations

from collections import defaultdict
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from pydantic import ValidationError

from fluffle.aggregator.coordinator.selection import sample_cohort
from fluffle.aggregator.ledger.privacy import epsilon, epsilons
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.summary import summarise
from fluffle.aggregator.strategies.base import model_of
from fluffle.aggregator.verify import verify
from fluffle.aggregator.verify.replay import replay
from fluffle.broker import Envelope
from fluffle.schemas import Assignment, ClientFailed, Experiment, GlobalModel, UserError
from tests.aggregator.scripted import Federation

PRIVACY = {"clip_norm": 1.0, "noise_multiplier": 0.7, "noise": "seeded"}
POISSON = {**PRIVACY, "sampling": "poisson"}
FEDBUFF = {"strategy": "fedbuff"}
BY_LOSS = {"selection": "power-of-choice", "selection_parameters": {"candidates": 5}}
COHORT = {"mode": "cohort", "sampling_rate": 0.33}
SEPARATED = {"selection": "min-separation", "selection_parameters": {"separation": 2}}


def turns_by_client(folder: Path) -> dict[str, list[int]]:
    found = defaultdict(list)
    with closing(LedgerReader(folder)) as ledger:
        for client, version in ledger.query(
            "SELECT client, version FROM updates WHERE version > 0 ORDER BY version"
        ):
            found[client].append(version)
    return found


# ---- rests


@pytest.mark.parametrize(
    ("participation", "clients"),
    [
        ({"mode": "concurrent", "concurrency": 5}, 20),
        ({"mode": "cohort", "sampling_rate": 0.15}, 21),
    ],
)
def test_a_client_rests_between_versions_whatever_happens(
    tmp_path: Path, participation: dict[str, Any], clients: int
) -> None:
    # Given a run in which two clients answer at a time, and the aggregator dies now and then
    federation = Federation(
        tmp_path,
        experiment={"versions": 40},
        task={"clients": clients},
        aggregation={**FEDBUFF, "quorum": 3},
        participation={
            **participation,
            "selection": "min-separation",
            "selection_parameters": {"separation": 6},
        },
        privacy={**PRIVACY, "mechanism": "banded-mf"},
    )
    for number in range(40):
        federation.answer(2)
        if number % 7 == 6 and federation.service.outcome is None:
            federation.die()
            federation.start()
    federation.finish()
    # Then no client counts twice in six versions, though all are busy
    turns = turns_by_client(tmp_path)
    assert min(b - a for of in turns.values() for a, b in pairwise(of)) == 6
    # And its updates cost what they cost under independent noise
    most = max(len(of) for of in turns.values())
    with closing(LedgerReader(tmp_path)) as ledger:
        assert verify(ledger) == []
        assert replay(ledger).problem is None
        spent = epsilons(ledger)[-1][1]
    assert spent == pytest.approx(epsilon(0.7 / most**0.5, 1e-5), rel=1e-6)


# ---- cohorts by chance


def test_each_client_is_chosen_by_itself_and_by_the_secret_alone() -> None:
    key, other = b"a" * 32, b"b" * 32
    rate, clients, versions = 0.2, 50, 2000
    chosen = np.zeros((versions, clients))
    for version in range(versions):
        chosen[version, [int(c) for c in sample_cohort(key, version, clients, rate)]] = 1
    std = np.sqrt(rate * (1 - rate))
    assert np.abs(chosen.mean(axis=0) - rate).max() < 5 * std / np.sqrt(versions)
    # Sizes are binomial: no client makes room for another
    assert chosen.sum(axis=1).var() == pytest.approx(clients * std**2, rel=0.15)
    assert np.abs(np.corrcoef(chosen.T) - np.eye(clients)).max() < 5 / np.sqrt(versions)
    centred = chosen - rate
    assert abs((centred[1:] * centred[:-1]).mean()) < 5 * std**2 / np.sqrt(centred.size)
    same = [sample_cohort(key, v, clients, rate) == sample_cohort(other, v, clients, rate)
            for v in range(100)]  # fmt: skip
    assert sum(same) < 5


def poisson(folder: Path, **tables: Any) -> Federation:
    return Federation(
        folder,
        **{
            "experiment": {"versions": 30},
            "task": {"clients": 12},
            "aggregation": {**FEDBUFF, "deadline_s": 1e6},
            "participation": {"mode": "cohort", "sampling_rate": 0.15},
            "privacy": POISSON,
            **tables,
        },
    )


def test_a_sampled_cohort_is_all_that_counts_through_restarts_and_where_it_is_empty(
    tmp_path: Path,
) -> None:
    # Given cohorts of 1.8 clients on average, and an aggregator that dies now and then
    federation = poisson(tmp_path)
    number = 0
    while federation.service.outcome is None:
        federation.answer(1)
        if number % 5 == 4 and federation.service.outcome is None:
            federation.die()
            federation.start()
        number += 1
    federation.service.close()
    with closing(LedgerReader(tmp_path)) as ledger:
        key = bytes.fromhex(ledger.meta["sampling_key"])
        rows = ledger.query("SELECT version, client FROM updates WHERE version > 0")
        sizes = dict(ledger.query("SELECT version, updates FROM versions WHERE version > 0"))
        assert verify(ledger) == []
        assert replay(ledger).problem is None
    # Then exactly the clients that the secret has chosen for a version are in it
    for version in range(1, 31):
        expected = sample_cohort(key, version - 1, 12, 0.15)
        assert sorted(c for v, c in rows if v == version) == sorted(expected)
        assert sizes[version] == len(expected)
    assert 0 in sizes.values()


def test_nobody_takes_the_place_of_who_fails_or_drops_out(tmp_path: Path) -> None:
    # Chance makes cohorts: of so many clients none is too small for this.
    half = {"mode": "cohort", "sampling_rate": 0.5}
    federation = poisson(tmp_path, task={"clients": 60}, participation=half)
    federation.answer(1)
    # Given a cohort of which one fails, one never answers and the others do
    deliveries = []
    while (delivery := federation.worker.receive_assignment(0.0)) is not None:
        deliveries.append(delivery)
        federation.worker.ack(delivery)
    turns = [d.envelope.message() for d in deliveries]
    first, second, *others = [t for t in turns if isinstance(t, Assignment)]
    failed = ClientFailed(
        run=first.run,
        update_id=first.assignment_id,
        client=first.client,
        turn=first.turn,
        base_version=0,
        worker="worker",
        reason="no data",
    )
    federation.worker.submit(Envelope.of(failed))
    for turn in others:
        federation.worker.submit(Envelope.of(federation.update(turn)))
    federation.settle()
    assert federation.worker.receive_assignment(0.0) is None
    coordinator = federation.service.coordinator
    assert coordinator is not None
    assert coordinator.version == 0
    # When its turn is overdue, the version is made of who answered
    federation.wait(601.0)
    assert coordinator.version >= 1
    assert second.client not in [fold.client for fold in coordinator.buffer.closed]
    # And what travels tells how many are expected, not how many came
    model = federation.worker.newest_model()
    assert model is not None
    message = model.message()
    assert isinstance(message, GlobalModel)
    assert message.updates == 30 * message.version
    federation.service.close()


def test_a_mean_divides_by_the_expected_number(tmp_path: Path) -> None:
    # Given hardly any noise, and updates that are clipped to length 1
    privacy = {**POISSON, "noise_multiplier": 1e-9}
    federation = poisson(
        tmp_path,
        privacy=privacy,
        experiment={"versions": 2},
        participation={"mode": "cohort", "sampling_rate": 0.5},
    )
    federation.finish(turns_at_once=1)
    with closing(LedgerReader(tmp_path)) as ledger:
        files = dict(ledger.query("SELECT version, file FROM versions"))
        (first, second) = (model_of(ledger.store.read(files[v])) for v in (1, 2))
        turns = [t for (t,) in ledger.query("SELECT turn FROM updates WHERE version = 2")]
    sums = {name: np.zeros(array.shape) for name, array in first.items()}
    for turn in turns:
        sent = federation.sent(turn)
        length = np.sqrt(sum(float(np.square(a, dtype=np.float64).sum()) for a in sent.values()))
        for name in sums:
            sums[name] += sent[name] / length
    for name in sums:
        np.testing.assert_allclose(second[name] - first[name], sums[name] / 6, atol=1e-5)


def test_epsilon_is_that_of_a_sampled_gaussian_and_far_below_that_of_a_certain_one(
    tmp_path: Path,
) -> None:
    federation = poisson(tmp_path)
    federation.finish()
    with closing(LedgerReader(tmp_path)) as ledger:
        found = epsilons(ledger)
        caveats = summarise(ledger)["privacy"]["caveats"]
    # Given the privacy loss distribution, which is exact up to rounding (arXiv 2207.04380)
    exact = dp_accounting.pld.PLDAccountant()
    event = dp_accounting.PoissonSampledDpEvent(0.15, dp_accounting.GaussianDpEvent(0.7))
    exact.compose(event, 30)
    tight = exact.get_epsilon(1e-5)
    assert tight <= found[-1][1] < 1.4 * tight
    assert found[-1][1] < 0.6 * epsilon(0.7 / 30**0.5, 1e-5)
    assert [v for v, _ in found] == list(range(1, 31))
    assert "not against workers" in caveats[0]


# ---- what cannot be honoured


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"participation": {"mode": "concurrent"}}, "needs participation.mode = 'cohort'"),
        (
            {"participation": {"mode": "cohort", "sampling_rate": 0.3, "over_selection": 1.2}},
            "needs participation.over_selection = 1",
        ),
        ({"aggregation": {**FEDBUFF, "quorum": 3}}, "needs no aggregation.quorum"),
        ({"aggregation": {**FEDBUFF, "on_deadline": "extend"}}, "on_deadline = 'step'"),
        ({"aggregation": {"strategy": "median"}}, "privacy goes with"),
        ({"participation": {"mode": "cohort"}}, "sampling_rate below 1"),
        ({"privacy": {**POISSON, "mechanism": "banded-mf"}}, "goes with privacy.mechanism = 'gau"),
        ({"privacy": {**PRIVACY, "mechanism": "banded-mf"}}, "needs clients that rest"),
        ({"participation": {**COHORT, **SEPARATED}}, "needs participation.selection = 'uniform'"),
        ({"participation": {**COHORT, **BY_LOSS}, "privacy": PRIVACY}, "chooses by what"),
        ({"privacy": {**PRIVACY, "mechanism": "banded"}}, "did you mean banded-mf"),
        ({"privacy": {**PRIVACY, "parameters": {"a": 1}}}, "are for a mechanism of your own"),
    ],
)
def test_what_cannot_be_honoured_together_is_refused(tables: dict[str, Any], message: str) -> None:
    given = {
        "task": {"clients": 12},
        "aggregation": FEDBUFF,
        "participation": COHORT,
        "privacy": POISSON,
    }
    with pytest.raises(ValidationError, match=message):
        Experiment.model_validate({**given, **tables})


def test_a_run_whose_noise_is_kept_nowhere_cannot_be_replayed_and_says_so(tmp_path: Path) -> None:
    privacy = {"clip_norm": 1.0, "noise_multiplier": 0.7}
    federation = Federation(tmp_path, aggregation=FEDBUFF, privacy=privacy)
    federation.finish()
    with closing(LedgerReader(tmp_path)) as ledger:
        assert verify(ledger) == []
        with pytest.raises(UserError, match="came from the operating system and is kept nowhere"):
            replay(ledger)
