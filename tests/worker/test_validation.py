"""The validation part: what decisions are made on, and no client trains on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fluffle.schemas import Experiment, Plan
from fluffle.schemas.experiment import PartitionTable
from fluffle.worker.tasks.partitions import held_out
from fluffle.worker.tasks.task import Examples, Task
from fluffle.worker.training.runtime import configure


class Hundred(Task):
    """A hundred examples of ten labels, in order, of five people."""

    def model(self) -> Any:
        raise NotImplementedError

    def dataset(self) -> Examples:
        return Examples(np.arange(100.0).reshape(100, 1), np.repeat(np.arange(10), 10))

    def test(self) -> Examples:
        return Examples(np.zeros((7, 1)), np.zeros(7, int))

    def owners(self) -> NDArray[Any]:
        return np.repeat(np.arange(5), [1, 9, 20, 30, 40])


def made(kind: type[Task] = Hundred, share: float = 0.2, partition: str = "iid") -> Task:
    task = kind(5, PartitionTable(kind=partition), 3)
    task.validation_share = share
    return task


def trained_on(task: Task) -> list[int]:
    parts = [task.client_indices(str(client)) for client in range(task.clients)]
    return sorted(np.concatenate(parts).tolist())


@pytest.mark.parametrize("partition", ["contiguous", "iid", "shards", "dirichlet", "natural"])
def test_no_client_trains_on_it_and_all_train_on_the_rest(partition: str) -> None:
    task = made(partition=partition)
    part = task.decided_on
    assert part is not None
    assert part[0] == "dataset"
    assert sorted([*trained_on(task), *part[1].tolist()]) == list(range(100))
    # And it is a fifth, of each person's where people are clients: an only example is not taken
    assert len(part[1]) == (19 if partition == "natural" else 20)
    if partition == "natural":
        owners = task.owners()
        assert owners is not None
        assert np.bincount(owners[part[1]], minlength=5).tolist() == [0, 1, 4, 6, 8]
        whose = [set(owners[task.client_indices(str(client))]) for client in range(5)]
        assert whose == [{client} for client in range(5)]


def test_without_a_share_clients_have_what_they_had() -> None:
    plain = made(share=0.0)
    assert plain.decided_on is None
    assert trained_on(plain) == list(range(100))


def test_it_is_drawn_by_the_seed_and_in_the_order_of_the_data() -> None:
    first, again, other = (held_out(1000, 0.1, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(first, np.unique(first))
    assert len(first) == 100
    assert len(held_out(9, 0.1, 1)) == 0


def test_a_task_that_brings_one_or_deals_its_examples_out_keeps_all_for_training() -> None:
    class Brings(Hundred):
        def validation(self) -> Examples:
            return Examples(np.zeros((3, 1)), np.zeros(3, int))

    class Deals(Hundred):
        def client_indices(self, client: str) -> NDArray[np.int32]:
            return np.arange(100, dtype=np.int32)[int(client) :: 5]

    part = made(Brings).decided_on
    assert part is not None
    assert (part[0], part[1].tolist()) == ("validation", [0, 1, 2])
    assert trained_on(made(Brings)) == trained_on(made(Deals)) == list(range(100))
    assert made(Deals).decided_on is None


@pytest.mark.tensorflow
def test_an_evaluation_measures_both_and_a_site_its_own_alone() -> None:
    configure(2)
    from fluffle.worker.tasks.registry import load_task
    from fluffle.worker.training.trainer import Trainer

    tables: dict[str, Any] = {
        "task": {"name": "digits-lr", "clients": 5, "validation": 0.2},
        "training": {"optimizer": "sgd", "learning_rate": 0.5},
    }
    plan = Plan.of(Experiment.model_validate(tables), "weights")
    trainer, task = Trainer(plan), load_task(plan)
    weights = trainer.train(trainer.initial(), "0", 1).tensors
    found, count = trainer.evaluate(weights)
    # Then what was measured on the part is what the model gets right of it
    part = task.decided_on
    assert part is not None
    x, y = (np.asarray(array)[part[1]] for array in task.dataset())
    logits = np.asarray(task.preprocess(x), np.float64).reshape(len(x), -1)
    logits = logits @ weights["trainable/0"] + weights["trainable/1"]
    right = np.mean(logits.argmax(axis=1) == y)
    assert found["validation_accuracy"] == pytest.approx(right, abs=1e-6)
    assert found["validation_accuracy"] != found["accuracy"]
    assert count == 360
    assert {"validation_loss", "loss"} <= found.keys()
    alone, _ = trainer.evaluate(weights, by_client=False)
    assert set(alone) == {"accuracy", "loss"}
