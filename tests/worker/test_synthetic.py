"""Synthetic(alpha, beta): the numbers that the paper's section 5.1 and its generator say."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fluffle.schemas.experiment import PartitionTable, TaskTable
from fluffle.worker.datasets.recipe import Dataset
from fluffle.worker.datasets.synthetic import generate
from fluffle.worker.tasks.synthetic import SyntheticLr


def devices_of(data: Dataset) -> list[NDArray[np.float32]]:
    assert data.owner_train is not None
    return np.split(data.x_train, np.flatnonzero(np.diff(data.owner_train)) + 1)


def test_a_device_has_fifty_examples_and_a_lognormal_number_more() -> None:
    # Given 400 devices; nine tenths of what each has are for training
    data = generate(1, 1, False, 400, seed=3)
    trained = np.array([len(x) for x in devices_of(data)])
    total = len(data.y_train) + len(data.y_test)
    assert len(trained) == 400
    assert trained.min() >= 45
    assert len(data.y_train) / total == pytest.approx(0.9, abs=0.005)

    # Then the rest's logarithm has mean 4 and deviation 2 (what is below one example apart)
    more = np.log(np.maximum(trained / 0.9 - 50, 1))
    assert np.median(more) == pytest.approx(4, abs=0.25)
    high, low = np.percentile(more, [84.13, 15.87])
    assert (high - low) / 2 == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
def test_inputs_vary_within_a_device_by_sigma_and_between_devices_by_beta(beta: float) -> None:
    data = generate(1, beta, False, 300, seed=1)
    devices = devices_of(data)

    # Then coordinate j has the variance j^-1.2 within a device
    within = np.mean([x.var(axis=0, ddof=1) for x in devices], axis=0)
    assert within == pytest.approx(np.arange(1, 61) ** -1.2, rel=0.1)

    # And a device's means have the variance 1 around B_k, and B_k deviates by beta
    means = np.array([x.mean(axis=0) for x in devices])
    assert means.var(axis=1).mean() == pytest.approx(1, rel=0.1)
    assert means.mean(axis=1).std() == pytest.approx(np.hypot(beta, 60**-0.5), rel=0.15)


def test_iid_devices_have_one_distribution_and_one_model() -> None:
    data = generate(1, 1, True, 300, seed=1)
    means = np.array([x.mean(axis=0) for x in devices_of(data) if len(x) >= 200])
    assert np.abs(means.mean(axis=0)).max() < 0.05
    assert known_of_strangers(data) > 0.7


def test_devices_of_their_own_have_models_of_their_own() -> None:
    assert known_of_strangers(generate(0, 0, False, 300, seed=1)) < 0.2


def known_of_strangers(data: Dataset) -> float:
    """How often a linear model of half of the devices is right on the other half."""
    x = np.hstack([data.x_train, np.ones((len(data.x_train), 1))])
    one = np.asarray(data.owner_train) < 150
    model, *_ = np.linalg.lstsq(x[one], np.eye(10)[data.y_train[one]], rcond=None)
    return float(np.mean(np.argmax(x[~one] @ model, axis=1) == data.y_train[~one]))


def test_alpha_changes_no_label_because_it_moves_all_classes_of_a_device_alike() -> None:
    # Given that u_k is the mean of every column of W_k and b_k, it cancels in the argmax
    one, other = (generate(alpha, 1, False, 30, seed=5) for alpha in (0.0, 2.0))
    assert np.array_equal(one.x_train, other.x_train)
    assert np.mean(one.y_train == other.y_train) > 0.999


def test_the_same_seed_gives_the_same_data_and_another_gives_other() -> None:
    one, same, other = (generate(1, 1, False, 30, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.x_train, same.x_train)
    assert np.array_equal(one.y_test, same.y_test)
    assert one.x_train.shape != other.x_train.shape


def test_the_experiment_file_says_which() -> None:
    natural = PartitionTable(kind="natural")
    for table, expected in [
        (TaskTable(), (1, 1, False)),
        (TaskTable(synthetic_alpha=0.5, synthetic_beta=0.0), (0.5, 0, False)),
        (TaskTable(synthetic_iid=True), (1, 1, True)),
    ]:
        task = SyntheticLr.of(table, natural, seed=9)
        assert np.array_equal(task.dataset().x, generate(*expected, 30, 9).x_train)


def test_there_are_thirty_devices_or_as_many_as_clients() -> None:
    for clients, devices in [(1, 30), (30, 30), (31, 31)]:
        owners = SyntheticLr(clients, PartitionTable(kind="natural"), 0).owners()
        assert owners is not None
        assert len(set(owners)) == devices


@pytest.mark.parametrize("clients", [5, 30, 40])
def test_only_the_clients_devices_are_tested_where_a_client_is_a_device(clients: int) -> None:
    # Given a model for each device, which says nothing about the others'
    task = SyntheticLr(clients, PartitionTable(kind="natural"), 3)
    owners = task.test_owners()
    assert owners is not None
    # Then the test has all examples of those that take part, and of nobody else
    assert np.unique(owners).tolist() == list(range(clients))
    assert len(task.test().x) == len(task.test().y) == len(owners)
    mine = np.isin(np.asarray(task.data.owner_test), range(clients))
    assert np.array_equal(task.test().x, task.data.x_test[mine])
    # And where everybody has something of all devices, all are tested
    spread = SyntheticLr(clients, PartitionTable(kind="iid"), 3)
    assert len(spread.test().y) == len(spread.data.y_test)
