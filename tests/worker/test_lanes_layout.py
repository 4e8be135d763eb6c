"""How the JAX engine lays trainings out as rows of examples."""

from __future__ import annotations

import numpy as np
import pytest

from fluffle.worker.training.lanes.layout import Shape, layout, rounded, shape_of


@pytest.mark.parametrize(
    ("examples", "padded", "expected"),
    [
        (60, True, Shape(2, 6, 10, 0, masked=False, skips=False)),
        (64, True, Shape(2, 8, 10, 0, masked=True, skips=True)),  # seven batches
        (64, False, Shape(2, 6, 10, 4, masked=False, skips=False)),
        (5, True, Shape(2, 1, 6, 0, masked=True, skips=False)),
        (5, False, Shape(2, 0, 1, 5, masked=False, skips=False)),
        (10, True, Shape(2, 1, 10, 0, masked=False, skips=False)),
    ],
)
def test_shapes(examples: int, padded: bool, expected: Shape) -> None:
    assert shape_of(examples, 2, 10, padded) == expected


def test_steps_are_rounded_up_by_a_half_at_most() -> None:
    steps = range(1, 2000)
    assert all(n <= rounded(n) <= max(n, 1.5 * n) for n in steps)
    assert len({rounded(n) for n in steps}) < 24
    assert rounded(0) == 0


@pytest.mark.parametrize("examples", [1, 5, 10, 60, 64, 73])
@pytest.mark.parametrize("padded", [True, False])
def test_each_epoch_has_every_example_once(examples: int, padded: bool) -> None:
    mine = np.arange(100, 100 + examples, dtype=np.int32)
    shape = shape_of(examples, 3, 10, padded)
    found = layout(mine, shape, np.random.default_rng(0))
    orders = []
    for rows, counts, rest in zip(found.indices, found.counts, found.rest, strict=True):
        taken = [*(i for row, n in zip(rows, counts, strict=True) for i in row[:n]), *rest]
        assert sorted(taken) == mine.tolist()
        orders.append(tuple(taken))
    # In an order of its own
    assert examples == 1 or len(set(orders)) > 1
