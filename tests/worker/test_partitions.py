"""Partitions: what each kind promises, and what holds for all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fluffle.schemas import UserError
from fluffle.schemas.experiment import PartitionTable
from fluffle.worker.tasks.partitions import partition

#: All but natural, which is not ours to choose.
KINDS = ("contiguous", "iid", "shards", "dirichlet", "power-law", "similarity")


def labels_of(examples: int, classes: int = 10) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, classes, examples).astype(np.uint8)


@st.composite
def cases(draw: st.DrawFn) -> tuple[PartitionTable, NDArray[np.uint8], int, int]:
    labels = np.array(draw(st.lists(st.integers(0, 5), min_size=1, max_size=120)), np.uint8)
    table = PartitionTable(
        kind=draw(st.sampled_from(KINDS)),
        shards_per_client=draw(st.integers(1, 4)),
        alpha=draw(st.floats(1e-300, 1e6)),
        exponent=draw(st.none() | st.floats(0, 1e300)),
        similarity=draw(st.none() | st.floats(0, 100)),
    )
    most = len(labels) // (table.shards_per_client if table.kind == "shards" else 1)
    if most == 0:
        table, most = table.model_copy(update={"shards_per_client": 1}), len(labels)
    return table, labels, draw(st.integers(1, most)), draw(st.integers(0, 2**32 - 1))


@given(cases())
def test_every_example_belongs_to_exactly_one_client_and_every_client_has_one(
    case: tuple[PartitionTable, NDArray[np.uint8], int, int],
) -> None:
    parts = partition(*case)
    assert len(parts) == case[2]
    assert all(part.dtype == np.int32 and len(part) for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(case[1])))


@given(cases())
def test_the_same_seed_gives_the_same_partition(
    case: tuple[PartitionTable, NDArray[np.uint8], int, int],
) -> None:
    for first, second in zip(partition(*case), partition(*case), strict=True):
        assert np.array_equal(first, second)


@given(cases(), st.integers(1, 20))
def test_a_cap_keeps_the_first_examples_of_each_client(
    case: tuple[PartitionTable, NDArray[np.uint8], int, int], cap: int
) -> None:
    capped = partition(case[0].model_copy(update={"examples_per_client": cap}), *case[1:])
    for whole, part in zip(partition(*case), capped, strict=True):
        assert np.array_equal(whole[:cap], part)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_another_seed_gives_another_partition(kind: str) -> None:
    table = PartitionTable.model_validate({"kind": kind})
    first, second = (np.concatenate(partition(table, labels_of(600), 10, s)) for s in (1, 2))
    assert not np.array_equal(first, second)


def test_contiguous_gives_ten_clients_of_mnist_slices_of_six_thousand() -> None:
    parts = partition(PartitionTable(kind="contiguous"), labels_of(60_000), 10, 42)
    for k, part in enumerate(parts):
        assert np.array_equal(part, np.arange(6000 * k, 6000 * (k + 1)))


def test_parts_differ_by_one_example_at_most_when_they_cannot_be_equal() -> None:
    for kind in ("contiguous", "iid", "dirichlet", "similarity"):
        table = PartitionTable.model_validate({"kind": kind})
        sizes = [len(part) for part in partition(table, labels_of(1003), 10, 1)]
        assert max(sizes) - min(sizes) == 1


def test_shards_give_each_client_exactly_two_label_sorted_shards_as_mcmahan_has_it() -> None:
    # Given MNIST's size and 100 clients, the paper's 200 shards of 300
    labels = labels_of(60_000)
    parts = partition(PartitionTable(kind="shards"), labels, 100, 7)

    # Then each client's examples fill two of the 200 stretches of the sorted examples
    place = np.empty(60_000, int)
    place[np.argsort(labels, kind="stable")] = np.arange(60_000)
    for part in parts:
        shards, sizes = np.unique(place[part] // 300, return_counts=True)
        assert len(shards) == 2
        assert set(sizes) == {300}


def test_a_cap_on_shards_keeps_examples_of_both_shards() -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 600)
    table = PartitionTable(kind="shards", examples_per_client=100)
    # Each shard holds one label only, so a client has as many labels as different shards' labels.
    whole = partition(PartitionTable(kind="shards"), labels, 10, 3)
    for part, full in zip(partition(table, labels, 10, 3), whole, strict=True):
        assert set(labels[part]) == set(labels[full])


def test_the_classes_of_a_client_vary_as_a_dirichlet_of_alpha_times_the_prior_does() -> None:
    # Given the first of 20 clients (no class has run out for it) under 400 seeds
    labels = np.tile(np.arange(10, dtype=np.uint8), 200)

    for alpha in (0.3, 1.0, 10.0):
        table = PartitionTable(kind="dirichlet", alpha=alpha)
        firsts = [labels[partition(table, labels, 20, seed)[0]] for seed in range(400)]
        shares = np.array([np.bincount(first, minlength=10) / 100 for first in firsts])

        # Then a class's share has the variance p (1 - p) / (alpha + 1), and that of 100 draws
        between = 0.1 * 0.9 / (alpha + 1)
        expected = between + (0.1 * 0.9 - between) / 100
        assert shares.mean(axis=0) == pytest.approx(np.full(10, 0.1), abs=0.05)
        assert np.mean((shares - 0.1) ** 2) == pytest.approx(expected, rel=0.15)


def by_class(alpha: float, least: int | None = None) -> PartitionTable:
    return PartitionTable(kind="dirichlet-by-class", alpha=alpha, min_examples=least)


def test_dirichlet_by_class_cuts_each_class_by_a_symmetric_dirichlet_over_clients() -> None:
    # Given classes of 600 among ten clients, under 300 seeds; the first one is cut freely
    labels = np.tile(np.arange(3, dtype=np.uint8), 600)
    for alpha in (0.5, 2.0):
        parts = [partition(by_class(alpha, 1), labels, 10, seed) for seed in range(300)]
        shares = np.array([[np.mean(labels[p] == 0) * len(p) for p in own] for own in parts]) / 600

        # Then a client's share of it is Beta(alpha, 9 alpha), but that nobody is left with nothing
        assert shares.sum(axis=1) == pytest.approx(np.ones(300))
        expected = 0.1 * 0.9 / (10 * alpha + 1)
        assert shares.var() == pytest.approx(expected, rel=0.2)


def test_dirichlet_by_class_gives_every_example_once_in_unequal_sizes_of_ten_at_least() -> None:
    labels = labels_of(3000)
    parts = partition(by_class(0.5), labels, 10, 4)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(3000))
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 10
    assert max(sizes) > 2 * min(sizes)
    assert all(map(np.array_equal, parts, partition(by_class(0.5), labels, 10, 4)))


def test_a_client_that_has_its_share_gets_none_of_the_classes_after() -> None:
    # Given two classes, the first of which is three quarters of the data, and two clients
    labels = np.repeat(np.array([0, 1], np.uint8), [750, 250])
    for seed in range(40):
        first, second = partition(by_class(0.3, 1), labels, 2, seed)
        full = [p for p in (first, second) if np.sum(labels[p] == 0) >= 500]
        assert all(np.sum(labels[p] == 1) == 0 for p in full)


def test_dirichlet_by_class_that_cannot_be_drawn_says_what_to_change() -> None:
    with pytest.raises(UserError, match=r"one of 50 clients with fewer than 10.*partition\.alpha"):
        partition(by_class(0.01), labels_of(1000), 50, 0)


@pytest.mark.parametrize("each", [1, 2, 3, 10])
def test_labels_give_each_client_so_many_classes_and_each_class_evenly(each: int) -> None:
    # Given ten classes of a hundred among 25 clients
    labels = np.tile(np.arange(10, dtype=np.uint8), 100)
    table = PartitionTable(kind="labels", labels_per_client=each)
    parts = partition(table, labels, 25, 3)

    # Then everything is dealt, client k has class k modulo ten, and so many in all
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
    counts = np.array([np.bincount(labels[part], minlength=10) for part in parts])
    assert ((counts > 0).sum(axis=1) == each).all()
    assert all(counts[k, k % 10] for k in range(25))
    # And who has a class has as much of it as the others who have it
    for of_class in counts.T:
        assert np.ptp(of_class[of_class > 0]) <= 1


def test_labels_are_two_for_each_client_where_nothing_is_said_and_others_by_the_seed() -> None:
    labels, table = labels_of(2000), PartitionTable(kind="labels")
    found = [
        [frozenset(labels[part]) for part in partition(table, labels, 10, seed)]
        for seed in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]
    assert {len(classes) for classes in found[0]} == {2}


@pytest.mark.parametrize(
    ("clients", "each", "said"),
    [
        (9, 2, "9 clients with 2 of 10 classes each: it needs at least 10 clients"),
        (10, 11, "at most 10 classes each"),
        (200, 10, "200 clients would divide a class of"),
    ],
)
def test_labels_that_cannot_be_dealt_say_what_to_change(clients: int, each: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        partition(
            PartitionTable(kind="labels", labels_per_client=each), labels_of(1000), clients, 0
        )


def test_quantities_are_a_symmetric_dirichlet_over_clients_and_classes_stay_as_they_are() -> None:
    # Given 20,000 examples of ten clients under 200 seeds
    labels = labels_of(20_000)
    parts = [partition(quantity(2.0, 1), labels, 10, seed) for seed in range(200)]
    shares = np.array([[len(part) for part in own] for own in parts]) / 20_000

    # Then a client's share is Beta(2, 18): a mean of a tenth, and this variance
    assert shares.sum(axis=1) == pytest.approx(np.ones(200))
    assert shares.var() == pytest.approx(0.1 * 0.9 / 21, rel=0.15)

    # And its classes are those of all, within chance
    large = max(parts[0], key=len)
    expected = np.bincount(labels) / len(labels)
    assert np.bincount(labels[large]) / len(large) == pytest.approx(expected, abs=0.05)


def test_quantities_leave_nobody_with_fewer_than_ten_or_say_what_to_change() -> None:
    parts = partition(quantity(0.5), labels_of(3000), 10, 4)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(3000))
    assert min(map(len, parts)) >= 10
    with pytest.raises(UserError, match=r"one of 50 clients with fewer than 10.*partition\.alpha"):
        partition(quantity(0.01), labels_of(1000), 50, 0)


def quantity(alpha: float, least: int | None = None) -> PartitionTable:
    return PartitionTable(kind="quantity", alpha=alpha, min_examples=least)


@pytest.mark.parametrize("kind", KINDS)
def test_more_clients_than_examples_is_an_error_that_says_what_to_change(kind: str) -> None:
    table = PartitionTable.model_validate({"kind": kind, "shards_per_client": 1})
    with pytest.raises(UserError, match=r"11 clients.*at least 11 examples.*10.*task\.clients"):
        partition(table, labels_of(10), 11, 0)


def test_more_shards_than_examples_is_an_error_that_names_the_shards() -> None:
    with pytest.raises(UserError, match="6 clients with 2 shards each need at least 12 examples"):
        partition(PartitionTable(kind="shards"), labels_of(11), 6, 0)


@given(st.integers(1, 60), st.integers(0, 500), st.floats(0, 5), st.integers(0, 99))
def test_power_law_sizes_are_those_of_the_formula(
    clients: int, more: int, exponent: float, seed: int
) -> None:
    table = PartitionTable(kind="power-law", exponent=exponent)
    sizes = [len(part) for part in partition(table, labels_of(clients + more), clients, seed)]
    weights = [(k + 1) ** -exponent for k in range(clients)]
    for size, weight in zip(sizes, weights, strict=True):
        assert abs(size - 1 - more * weight / sum(weights)) <= 1


def test_a_power_law_of_exponent_one_is_the_default_and_halves_the_second_client() -> None:
    table = PartitionTable(kind="power-law")
    labels = labels_of(60_000)
    parts = partition(table, labels, 100, 1)
    assert len(parts[0]) == pytest.approx(2 * len(parts[1]), rel=0.01)
    assert len(parts[0]) == pytest.approx(100 * len(parts[99]), rel=0.05)
    # And its classes are those of the whole
    shares = np.bincount(labels[parts[0]], minlength=10) / len(parts[0])
    assert shares == pytest.approx(np.full(10, 0.1), abs=0.02)


@pytest.mark.parametrize("percent", [0, 10, 50, 100])
def test_similarity_gives_that_share_iid_and_the_rest_by_label(percent: int) -> None:
    # Given as many clients as classes, 600 examples of each class
    labels = np.tile(np.arange(10, dtype=np.uint8), 600)
    table = PartitionTable(kind="similarity", similarity=percent)
    parts = partition(table, labels, 10, 5)

    # Then client k has its share of all classes, and the rest of its own class, or nearly: which
    # classes the iid part took most of moves the stretches a little
    for k, part in enumerate(parts):
        counts = np.bincount(labels[part], minlength=10)
        expected = np.full(10, 600 * percent / 100 / 10)
        expected[k] += 600 * (1 - percent / 100)
        assert len(part) == 600
        assert counts == pytest.approx(expected, abs=75 if percent else 0)


def test_similarity_of_zero_is_the_same_as_sorting_by_label() -> None:
    labels = labels_of(1000)
    parts = partition(PartitionTable(kind="similarity", similarity=0), labels, 7, 5)
    assert np.array_equal(
        np.concatenate([np.sort(labels[part]) for part in parts]), np.sort(labels)
    )


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.data())
def test_a_natural_partition_gives_each_client_what_its_owner_has(
    owners: list[int], data: st.DataObject
) -> None:
    people = sorted(set(owners))
    clients = data.draw(st.integers(1, len(people)))
    parts = partition(PartitionTable(kind="natural"), labels_of(len(owners)), clients, 0, owners)
    assert [part.tolist() for part in parts] == [
        [i for i, owner in enumerate(owners) if owner == person] for person in people[:clients]
    ]


def test_a_natural_partition_needs_owners_and_enough_of_them() -> None:
    natural = PartitionTable(kind="natural")
    with pytest.raises(UserError, match="belongs to nobody in particular"):
        partition(natural, labels_of(10), 2, 0)
    with pytest.raises(UserError, match=r"3 clients are more than .* 2 owners.*task\.clients"):
        partition(natural, labels_of(4), 3, 0, owners=[0, 1, 1, 0])


@pytest.mark.parametrize(
    "kind", ["shards", "dirichlet", "dirichlet-by-class", "labels", "similarity"]
)
def test_examples_with_many_labels_each_cannot_be_sorted_by_label(kind: str) -> None:
    table = PartitionTable.model_validate({"kind": kind})
    with pytest.raises(UserError, match=f"'{kind}' sorts examples by label.*use natural"):
        partition(table, np.zeros((20, 5)), 2, 0)


@pytest.mark.parametrize("kind", ["contiguous", "iid", "power-law"])
def test_examples_with_many_labels_each_are_split_by_their_number(kind: str) -> None:
    table = PartitionTable.model_validate({"kind": kind})
    parts = partition(table, np.zeros((20, 5)), 2, 0)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(20))
