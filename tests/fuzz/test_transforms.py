"""Updates that say they went through the plan's steps, and whose numbers are anybody's."""

from __future__ import annotations

import random

import numpy as np
import pytest
from pydantic import TypeAdapter

from fluffle.aggregator.coordinator.admission import restored
from fluffle.schemas import ClientUpdate, Run, Tensors, transforms
from fluffle.schemas.steps import Step
from fluffle.schemas.tensors import Spec, spec

MODEL: Spec = {
    "trainable/0": ("float32", (7, 5)),
    "trainable/1": ("float32", (3,)),
    "non_trainable/0": ("float32", (4,)),
}
TOP_K, RANDOM_K = ({"kind": kind, "share": 0.3} for kind in ("top_k", "random_k"))
PLANS = {
    "top-k": [TOP_K],
    "random-k": [RANDOM_K],
    "float16": [{"kind": "cast", "dtype": "float16"}],
    "bfloat16": [{"kind": "cast", "dtype": "bfloat16"}],
    **{f"{bits} bits": [{"kind": "quantise", "bits": bits}] for bits in (1, 2, 4, 8)},
    "top-k, 2 bits": [TOP_K, {"kind": "quantise", "bits": 2}],
    "clip, random-k, float16": [
        {"kind": "clip", "norm": 1.0},
        RANDOM_K,
        {"kind": "cast", "dtype": "float16"},
    ],
}


def tensors_of(wanted: Spec, draw: random.Random) -> Tensors:
    """Any bytes at all, in the dtypes and shapes that the server expects."""
    made: Tensors = {}
    for name, (dtype, shape) in wanted.items():
        ascending = np.arange(np.prod(shape)).astype(dtype).tobytes()  # as indices have to be
        size = len(ascending)
        raw = draw.choice((draw.randbytes(size), bytes(size), b"\xff" * size, ascending))
        made[name] = np.frombuffer(raw, dtype).reshape(shape)
    return made


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", PLANS)
def test_any_numbers_are_restored_to_finite_ones_or_refused(name: str) -> None:
    # Given a plan, and updates of just the tensors that it makes, filled with anything
    steps = [TypeAdapter(Step).validate_python(step) for step in PLANS[name]]
    wanted, draw, outcomes = transforms.sent_spec(steps, MODEL), random.Random(0), set()
    for _ in range(1000):
        update = ClientUpdate(
            run=Run(run_id="r", run_started=1, epoch=1),
            **{"update_id": "r:1:0", "client": "0", "turn": 1, "base_version": 0},
            **{"worker": "w", "sends": "delta", "examples": 1},
            tensors=tensors_of(wanted, draw),
        )
        # When the server undoes the steps
        back, reason = restored(update, steps, MODEL)
        outcomes.add(reason)
        # Then they are of the model's shapes and finite, or refused for a reason
        assert reason in (None, "wrong_shape", "not_finite")
        if reason is None:
            assert spec(back.tensors) == MODEL
            assert all(np.isfinite(array).all() for array in back.tensors.values())
    assert len(outcomes) > 1
