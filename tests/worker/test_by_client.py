"""How the global model serves each client, held against the numbers by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fluffle.schemas import Experiment, Plan, UserError
from fluffle.schemas.experiment import PartitionTable
from fluffle.worker.tasks.by_client import MOST_CLIENTS, ByClient
from fluffle.worker.tasks.registry import TASKS
from fluffle.worker.tasks.task import Examples, Task
from fluffle.worker.training.runtime import configure

LABELS = np.array([0] * 6 + [1] * 3 + [2])
#: Of each test example: whether it is right, and its loss.
RIGHT = np.array([1, 1, 1, 1, 1, 0, 1, 0, 0, 0], float)
LOSS = np.arange(10.0)


class Ten(Task):
    """Ten examples of three labels, of which the model has learned the first best."""

    def model(self) -> Any:
        raise NotImplementedError

    def dataset(self) -> Examples:
        return Examples(np.zeros((10, 1)), LABELS)

    def test(self) -> Examples:
        return self.dataset()

    def client_indices(self, client: str) -> Any:
        # Client 0 has label 0 alone, client 1 two of label 0 and two of label 1, client 2 label 2
        return [np.arange(4), np.array([4, 5, 6, 7]), np.array([9])][int(client)]


class Owned(Ten):
    def test_owners(self) -> Any:
        return np.array([0] * 5 + [2] * 5)


def measure(indices: np.ndarray[Any, Any]) -> Mapping[str, float]:
    return {"accuracy": RIGHT[indices].mean(), "loss": LOSS[indices].mean(), "auc": 0.5}


EVERY = np.arange(10, dtype=np.int32)


def test_a_client_is_measured_on_labels_as_frequent_as_its_own() -> None:
    # Given accuracies of 5/6, 1/3 and 0 for the three labels
    by_client = ByClient(Ten(3, PartitionTable(), 0), EVERY)
    # When they are weighted as the three clients' data are
    accuracies = np.array([5 / 6, (5 / 6 + 1 / 3) / 2, 0])
    losses = np.array([2.5, (2.5 + 7) / 2, 9])
    # Then these are the summaries
    assert by_client.measure(measure) == pytest.approx(
        {
            "client_accuracy_worst": 0,
            "client_accuracy_p10": np.percentile(accuracies, 10),
            "client_accuracy_mean": accuracies.mean(),
            "client_accuracy_std": accuracies.std(),
            "client_loss_worst": 9,
            "client_loss_p90": np.percentile(losses, 90),
            "client_loss_mean": losses.mean(),
            "client_loss_std": losses.std(),
        }
    )


def test_a_label_that_is_not_among_the_test_examples_counts_for_nobody() -> None:
    by_client = ByClient(Ten(3, PartitionTable(), 0), EVERY[:9])
    assert by_client.weights.tolist() == [[1, 0], [0.5, 0.5]]


def test_where_test_examples_have_owners_each_client_has_its_own() -> None:
    natural = PartitionTable(kind="natural")
    found = ByClient(Owned(3, natural, 0), EVERY).measure(measure)
    # Clients 0 and 2 have some: five right of five, and one of five
    assert found["client_accuracy_worst"] == pytest.approx(0.2)
    assert found["client_accuracy_mean"] == pytest.approx(0.6)
    # And under another partition these are nobody's
    assert len(ByClient(Owned(3, PartitionTable(), 0), EVERY).groups) == 3


def test_clients_renumbered_by_a_split_are_measured_on_their_own_data() -> None:
    # Given four people, the second of whom has nothing to train on: client 1 is then the third
    class Split(Owned):
        def owners(self) -> Any:
            return np.array([0, 0, 0, 2, 2, 2, 3, 3, 3, 3])

        def test_owners(self) -> Any:
            return np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3])

    by_client = ByClient(Split(3, PartitionTable(kind="natural"), 0), EVERY)
    assert [group.tolist() for group in by_client.groups] == [[0, 1, 2], [5, 6, 7], [8, 9]]
    # And so it is after task.clients was lowered, and for one client alone
    fewer = Split(2, PartitionTable(kind="natural"), 0)
    assert [group.tolist() for group in ByClient(fewer, EVERY).groups] == [[0, 1, 2], [5, 6, 7]]
    assert [group.tolist() for group in ByClient(fewer, EVERY, only=1).groups] == [[5, 6, 7]]


def test_of_many_clients_some_are_sampled_and_the_same_ones_each_time() -> None:
    class Many(Ten):
        def client_indices(self, client: str) -> Any:
            return np.array([int(client) % 10])

    first, again = (ByClient(Many(5000, PartitionTable(), 3), EVERY) for _ in range(2))
    assert first.weights.shape == (MOST_CLIENTS, 3)
    assert np.array_equal(first.weights, again.weights)


def test_a_task_without_labels_or_owners_is_refused() -> None:
    class Regression(Ten):
        def dataset(self) -> Examples:
            return Examples(np.zeros((10, 1)), np.linspace(0, 1, 10))

    with pytest.raises(UserError, match=r"evaluation\.by_client needs one label"):
        ByClient(Regression(3, PartitionTable(), 0), EVERY)


def test_the_devices_of_synthetic_data_have_test_examples_of_their_own() -> None:
    task = TASKS["synthetic-lr"](5, PartitionTable(kind="natural"), 0)
    owners = task.test_owners()
    assert owners is not None
    by_client = ByClient(task, np.arange(len(owners), dtype=np.int32))
    assert [len(group) for group in by_client.groups] == np.bincount(owners)[:5].tolist()


@pytest.mark.tensorflow
@pytest.mark.parametrize("examples", [None, 100])
def test_an_evaluation_says_how_clients_differ(examples: int | None) -> None:
    configure(2)
    from fluffle.worker.training.trainer import Trainer

    tables: dict[str, Any] = {
        "task": {"name": "digits-lr", "clients": 5},
        "partition": {"kind": "shards"},
        "evaluation": {"by_client": True, "examples": examples},
    }
    trainer = Trainer(Plan.of(Experiment.model_validate(tables), "weights"))
    found, count = trainer.evaluate(trainer.train(trainer.initial(), "0", 1).tensors)
    assert count == (examples or 360)
    # The client that trained is served better than those with other digits
    assert found["client_accuracy_worst"] < found["accuracy"] < 1
    assert found["client_accuracy_worst"] <= found["client_accuracy_p10"]
    assert found["client_accuracy_p10"] < found["client_accuracy_mean"]
    assert found["client_accuracy_std"] > 0
    assert len(found) == 10


@pytest.mark.tensorflow
def test_training_reads_no_test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(2)
    from fluffle.worker.training.trainer import Trainer

    def refuse(task: Task) -> Examples:
        pytest.fail("a worker asked for the held-out examples")

    # Given a task whose test examples nobody may ask for
    monkeypatch.setattr(TASKS["digits-lr"], "test", refuse)
    tables = {"task": {"name": "digits-lr", "clients": 5}, "evaluation": {"by_client": True}}
    trainer = Trainer(Plan.of(Experiment.model_validate(tables), "weights"))
    # Then it can be trained on all the same
    assert trainer.train(trainer.initial(), "0", 1).examples > 0
