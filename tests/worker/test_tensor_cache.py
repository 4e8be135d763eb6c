"""Base models that trainers share as tensors."""

from __future__ import annotations

import numpy as np
import pytest

from fluffle.schemas.tensors import Array
from fluffle.worker.training.tensor_cache import TensorCache

pytestmark = pytest.mark.tensorflow


def model(value: float, size: int = 10) -> list[Array]:
    arrays = [np.full(size, value, np.float32), np.full(2, value, np.float32)]
    for array in arrays:
        array.flags.writeable = False
    return arrays


def test_the_same_arrays_are_made_into_tensors_once() -> None:
    bases, arrays = TensorCache(), model(1.0)
    assert bases.find(arrays) is None
    made = bases.make(arrays)
    assert bases.find(list(arrays)) is made
    assert bases.make(arrays) is made
    assert [tensor.numpy().tolist() for tensor in made] == [[1.0] * 10, [1.0] * 2]


def test_equal_arrays_are_others() -> None:
    bases = TensorCache()
    bases.make(model(1.0))
    assert bases.find(model(1.0)) is None


def test_arrays_that_somebody_may_change_are_not_kept() -> None:
    bases, arrays = TensorCache(), model(1.0)
    arrays[1].flags.writeable = True
    made = bases.make(arrays)
    arrays[1][:] = 2.0
    assert bases.find(arrays) is None
    assert bases.make(arrays)[1].numpy().tolist() == [2.0, 2.0]
    assert made[1].numpy().tolist() == [1.0, 1.0]


def test_those_that_were_not_asked_for_longest_go_first() -> None:
    # Given room for two models of 48 bytes
    bases = TensorCache(kept_bytes=100)
    first, second, third = model(1.0), model(2.0), model(3.0)
    bases.make(first)
    bases.make(second)
    # When the first is asked for again, and a third comes
    assert bases.find(first) is not None
    bases.make(third)
    # Then the second is gone
    assert bases.find(second) is None
    assert bases.find(first) is not None
    assert bases.find(third) is not None
    assert bases.kept_bytes == 96


def test_a_model_beyond_the_bound_is_kept_alone() -> None:
    bases, large = TensorCache(kept_bytes=100), model(1.0, size=1000)
    bases.make(model(2.0))
    bases.make(large)
    assert bases.find(large) is not None
    assert bases.kept_bytes == 4008
