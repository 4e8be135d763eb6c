"""A resident site that trains an ``ArrayTask``, against the aggregator's service."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.service import AggregatorService
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.export import export
from fluffle.schemas import Experiment, UserError
from fluffle.worker.services.resident import ResidentService
from fluffle.worker.tasks import registry as tasks

TASK = """
import numpy as np
from fluffle import ArrayTask, Examples


class Means(ArrayTask):
    def weights(self):
        return {"mean": np.zeros(2), "ages": np.zeros(2, np.int64)}

    def train(self, weights, client, rng, state):
        mine = np.load(self.data_dir)
        if len(mine) == 1:
            raise ValueError("patient 4711 is alone")
        weights["mean"] += (mine.mean(axis=0) - weights["mean"]) / 2
        return weights, len(mine), {"clients_" + client[-1]: 1.0}, {}

    def test(self):
        return Examples(np.load(self.data_dir), np.zeros(2))

    def evaluate(self, weights):
        return {METRICS}
"""
LOSS = '{"loss": float(((np.load(self.data_dir) - weights["mean"]) ** 2).mean())}'
#: Its mean is (2, 5).
DATA = np.array([[1.0, 4.0], [3.0, 6.0]])


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A site's data; its task is in use."""
    np.save(tmp_path / "data.npy", DATA)
    task(tmp_path, LOSS)
    yield tmp_path
    tasks.use(None, None)


def task(folder: Path, metrics: str) -> None:
    path = folder / f"means_{len(metrics)}.py"
    path.write_text(TASK.replace("{METRICS}", metrics))
    tasks.use(f"{path}:Means", folder / "data.npy")


def finished(folder: Path) -> Path:
    """The folder of a run of three versions with one site, by name, and nobody else."""
    tables = {
        "experiment": {"versions": 3},
        "task": {"name": "means.py:Means", "clients": 0},
        "aggregation": {"quorum": 1},
        "evaluation": {"every_updates": 0},
        "participation": {"residents": ["lab-3"], "identity": "none"},
    }
    broker = EmbeddedBroker()
    errors: list[BaseException] = []

    def contribute() -> None:
        try:
            ResidentService(broker.worker("lab-3", 0), "lab-3").run()
        except UserError as error:
            errors.append(error)
            lead.stop()

    zero = {"trainable/mean": np.zeros(2), "non_trainable/ages": np.zeros(2, np.int64)}
    experiment = Experiment.model_validate(tables)
    port = broker.aggregator()
    lead = AggregatorService(experiment, port, folder / "out", run_id="run", initial=zero)
    thread = threading.Thread(target=contribute)
    thread.start()
    outcome = lead.run()
    thread.join(60)
    assert not thread.is_alive()
    if errors:
        raise errors[0]
    assert outcome == "finished"
    return folder / "out"


def test_a_site_trains_its_own_arrays_and_says_what_they_are_worth(
    site: Path, said: list[str]
) -> None:
    # When a site contributes to a run of three versions, each half of what is left of the way
    folder = finished(site)
    # Then each version is of one update of its two examples, and the model is what that makes
    ledger = Ledger(folder)
    rows = ledger.query("SELECT client, examples, base_version FROM updates ORDER BY version")
    assert rows == [("lab-3", 2, version) for version in range(3)]
    ledger.close()
    arrays = np.load(export(folder, "npz", "last", None))
    np.testing.assert_array_equal(arrays["trainable/mean"], DATA.mean(axis=0) * 7 / 8)
    # And the site has said what the model was worth here: at (0, 0), and one step on
    assert "loss on 2 held-out ones: global 15.5000, local 4.6250" in " ".join(said)
    assert any(line.startswith("contributed to run run: 3 updates from 6 exam") for line in said)


def test_a_site_whose_task_measures_neither_accuracy_nor_loss_contributes(
    site: Path, said: list[str]
) -> None:
    task(site, '{"bias": float(weights["mean"][0])}')
    finished(site)
    assert any(line.startswith("version 0: trained on 2 examples; ") for line in said)
    assert any(line.startswith("contributed to run run: 3 updates from 6 exam") for line in said)


def test_what_an_array_task_raises_at_a_site_names_its_line_there(site: Path) -> None:
    np.save(site / "data.npy", DATA[:1])
    with pytest.raises(UserError, match=r"cannot train here: .*line 13: ValueError: patient 4711"):
        finished(site)
