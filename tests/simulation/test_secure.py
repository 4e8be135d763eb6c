"""Secure runs as a whole, under the virtual clock: as plain ones, up to fixed point."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.summary import summarise
from fluffle.aggregator.strategies.base import model_of
from fluffle.aggregator.verify import verify
from fluffle.aggregator.verify.replay import replay
from fluffle.helper.ledger import HelperLedger
from fluffle.schemas import Experiment, Tensors, UserError
from fluffle.simulation.virtual import VirtualRun
from fluffle.worker.tasks import registry as tasks

TASK = """
import numpy as np
from fluffle import ArrayTask, Examples


class Pulls(ArrayTask):
    def weights(self):
        return {"w": np.zeros(40, "f4")}

    def dataset(self):
        return Examples(np.zeros((400, 1)), np.zeros(400, int))

    def train(self, weights, client, rng, state):
        goal = np.sin(np.arange(40) * (1 + int(client)))
        if client == "7" and self.seed == 1:
            goal[:] = 1e6
        weights["w"] += (0.2 * (goal - weights["w"])).astype("f4")
        return weights, 10, {"loss": 1.0}, {}

    def evaluate(self, weights):
        return {"loss": 1.0}
"""
DEVICES = {"delay": "exponential", "delay_s": 2.0, "dropout": 0.2}
COHORT = {"mode": "cohort", "sampling_rate": 0.4, "over_selection": 1.3}


@pytest.fixture(autouse=True)
def pulls(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "pulls.py").write_text(TASK)
    tasks.use(f"{tmp_path / 'pulls.py'}:Pulls", None)
    yield
    tasks.use(None, None)


def simulate(folder: Path, secure: bool = True, **tables: Any) -> tuple[dict[str, Any], Tensors]:
    """A run's summary, and its last model."""
    given: dict[str, Any] = {
        "experiment": {"versions": 12},
        "task": {"name": "pulls.py:Pulls", "clients": 20},
        "evaluation": {"every_updates": 0},
        "devices": DEVICES,
        "admission": {"norm_factor": 0},
        **({"secure_aggregation": {"max_value": 2.0}} if secure else {}),
    }
    experiment = Experiment.model_validate(given | tables)
    initial = {"trainable/w": np.zeros(40, np.float32)}
    run = VirtualRun(experiment, folder, run_id="experiment-1", slots=2, initial=initial)
    assert run.run() == "finished"
    with closing(LedgerReader(folder)) as ledger:
        assert verify(ledger) == []
        (file,) = ledger.query("SELECT file FROM versions ORDER BY version DESC LIMIT 1")[0]
        return summarise(ledger), model_of(ledger.store.read(file))


@pytest.mark.parametrize(
    "aggregation",
    [{"strategy": "fedavg", "weighting": "uniform"}, {"strategy": "fedbuff"}],
    ids=lambda table: table["strategy"],
)
def test_cohorts_with_dropouts_make_the_model_of_a_plain_run(
    tmp_path: Path, aggregation: dict[str, Any]
) -> None:
    # Given the same cohorts, stragglers and dropouts, in clear and under masks
    tables = {"aggregation": aggregation, "participation": COHORT}
    plain, expected = simulate(tmp_path / "plain", secure=False, **tables)
    secure, found = simulate(tmp_path / "secure", **tables)

    # Then the same updates count, and twelve versions later the model is the same to fixed point
    for key in ("updates_counted", "updates_rejected", "dropouts", "wall_s"):
        assert secure[key] == plain[key]
    assert plain["updates_rejected"]["late"] > 0
    assert np.abs(expected["trainable/w"]).max() > 0.2
    assert np.allclose(found["trainable/w"], expected["trainable/w"], rtol=0, atol=1e-6)


def test_an_asynchronous_run_unmasks_each_counted_update_once_and_no_other(tmp_path: Path) -> None:
    # Given FedBuff with stale updates, which weigh less
    summary, found = simulate(tmp_path, participation={"concurrency": 8}, aggregation={"quorum": 4})

    # Then what was unmasked is what was counted, and the model has learned
    assert (summary["versions"], summary["updates_counted"]) == (12, 48)
    with (
        closing(HelperLedger(tmp_path / "helper")) as ledger,
        closing(LedgerReader(tmp_path)) as record,
    ):
        rows = record.query("SELECT update_id, staleness FROM updates WHERE version > 0")
        assert set(ledger.unmasked()) == {update_id for update_id, _ in rows}
        assert max(staleness for _, staleness in rows) > 1
    assert np.abs(found["trainable/w"]).max() > 0.1


def test_a_secure_run_has_nothing_to_replay_and_says_so(tmp_path: Path) -> None:
    simulate(tmp_path, aggregation={"quorum": 4})
    with (
        closing(LedgerReader(tmp_path)) as ledger,
        pytest.raises(UserError, match="came under masks"),
    ):
        replay(ledger)


def test_the_same_seed_makes_the_same_bytes_though_masks_are_drawn_at_random(
    tmp_path: Path,
) -> None:
    runs = [
        simulate(tmp_path / name, participation={"concurrency": 8}, aggregation={"quorum": 4})[0]
        for name in ("one", "two")
    ]
    assert runs[0]["weights_sha256"] == runs[1]["weights_sha256"]


def test_clipping_and_noise_at_the_clients_go_with_it(tmp_path: Path) -> None:
    update = [{"kind": "clip", "norm": 0.1}, {"kind": "noise", "std": 1e-6}]
    _, found = simulate(tmp_path, update=update, aggregation={"quorum": 4})
    # Twelve versions of deltas that are at most 0.1 long
    assert 0.3 < float(np.linalg.norm(found["trainable/w"])) < 1.3


def test_a_client_whose_values_have_no_room_fails_and_the_run_goes_on(tmp_path: Path) -> None:
    summary, _ = simulate(
        tmp_path,
        experiment={"versions": 12, "seed": 1},
        aggregation={"strategy": "fedavg", "weighting": "uniform"},
        participation={"mode": "cohort", "sampling_rate": 0.8},
    )
    assert summary["failures"] > 0
    with closing(LedgerReader(tmp_path)) as ledger:
        for client, reason in ledger.query("SELECT client, reason FROM failures"):
            assert client == "7"
            assert "secure_aggregation.max_value = 2" in reason
