"""Arrays of several clients in one place, and what is held out of them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from fluffle import ClientData
from fluffle.schemas import UserError


def arrays(*sizes: int) -> dict[str, tuple[Any, Any]]:
    """Example i of client k is the number 100 k + i."""
    return {
        f"client-{k}": (100.0 * k + np.arange(size)[:, None], np.arange(size))
        for k, size in enumerate(sizes)
    }


def test_arrays_by_client_know_whose_they_are() -> None:
    data = ClientData.of(arrays(2, 3))
    assert data.examples.x.tolist() == [[0], [1], [100], [101], [102]]
    assert data.examples.y.tolist() == [0, 1, 0, 1, 2]
    assert data.owners is not None
    assert data.owners.tolist() == [0, 0, 1, 1, 1]
    assert data.clients == ("client-0", "client-1")


def test_a_share_of_each_client_is_held_out() -> None:
    # Given clients of very different sizes
    data = ClientData.of(arrays(10, 50, 2))
    # When a fifth is held out
    rest, test = data.split(test=0.2, seed=3)
    # Then it is a fifth of each, nothing is in both, and nothing is lost
    assert rest.owners is not None
    assert test.owners is not None
    assert np.bincount(test.owners, minlength=3).tolist() == [2, 10, 0]
    assert sorted([*rest.x[:, 0], *test.x[:, 0]]) == data.x[:, 0].tolist()
    assert (test.x[:, 0] // 100 == test.owners).all()
    # And the draw is the seed's
    assert data.split(0.2, seed=3)[1].x.tolist() == test.x.tolist()
    assert data.split(0.2, seed=4)[1].x.tolist() != test.x.tolist()


def test_what_is_nobodys_is_split_as_a_whole() -> None:
    rest, test = ClientData(np.zeros((10, 2)), np.arange(10)).split(test=0.3)
    assert (len(rest.y), len(test.y), rest.owners, test.owners) == (7, 3, None, None)


@pytest.mark.parametrize(
    ("clients", "says"),
    [
        ({}, "there are no clients"),
        ({"a": ([[1.0]], [1, 2])}, "a: 1 examples in x and 2 in y"),
        (
            {"a": ([[1.0]], [1]), "b": ([[1.0, 2.0]], [1])},
            "b: an example's x has shape (2,), a's has (1,)",
        ),
        ({"a": ([[1.0]], [1]), "b": ([[1.0]], [[1]])}, "b: an example's y has shape (1,), a's"),
        ({"a": (1.0, [1])}, "a: x is no array"),
        ({"a": ([None], [1])}, "a: x is no array"),
    ],
)
def test_arrays_that_do_not_fit_are_named(clients: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        ClientData.of(clients)


def test_a_share_is_a_share() -> None:
    with pytest.raises(UserError, match=re.escape("split(test=20): a share is above 0")):
        ClientData.of(arrays(5)).split(test=20)


def test_a_client_with_one_example_keeps_it() -> None:
    clients = {name: (np.ones((n, 2)), np.ones(n)) for name, n in (("a", 10), ("b", 1))}
    rest, test = ClientData.of(clients).split(test=0.6)
    assert rest.owners is not None
    assert (rest.owners == 1).sum() == 1
    assert len(test.y) == 6
