"""Compressed updates at the door: undone where they fit, refused with a reason elsewhere."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.coordinator.admission import finite, restored
from fluffle.schemas import ClientUpdate, Experiment, Run, Tensors, transforms
from fluffle.schemas.tensors import spec
from fluffle.schemas.transforms import Draws

DELTA: Tensors = {"trainable/0": np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)}


def sent(tables: list[dict[str, Any]]) -> tuple[Experiment, Tensors]:
    experiment = Experiment.model_validate({"update": tables})
    draws = Draws(np.random.default_rng(1), np.random.default_rng(2))
    tensors, _ = transforms.apply(experiment.update or (), DELTA, draws, {})
    return experiment, tensors


def reason_for(experiment: Experiment, tensors: Tensors) -> str | None:
    update = ClientUpdate(
        run=Run(run_id="run", run_started=1, epoch=1),
        **{"update_id": "run:1:0", "client": "0", "turn": 1, "base_version": 0, "worker": "w"},
        **{"sends": "delta", "examples": 1, "tensors": tensors},
    )
    whole, reason = restored(update, experiment.update or (), spec(DELTA))
    assert reason is not None or spec(whole.tensors) == spec(DELTA)
    return reason


def test_numbers_of_16_bits_are_looked_at_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert finite({"trainable/0": np.array([-65504, 65504], np.float16)})
        for bad in (np.inf, -np.inf, np.nan):
            assert not finite({"trainable/0": np.array([0, bad], np.float16)})


def test_what_a_client_of_ours_sends_is_taken() -> None:
    experiment, tensors = sent([{"kind": "top_k", "share": 0.1}, {"kind": "quantise", "bits": 4}])
    assert reason_for(experiment, tensors) is None
    assert reason_for(Experiment(), DELTA) is None


@pytest.mark.parametrize(
    ("step", "name", "values", "reason"),
    [
        ({"kind": "top_k", "share": 0.05}, "sparse/indices", [0, 1, 64], "wrong_shape"),
        ({"kind": "top_k", "share": 0.05}, "sparse/indices", [1, 0, 2], "wrong_shape"),
        ({"kind": "top_k", "share": 0.05}, "sparse/indices", [0, 1], "wrong_shape"),
        ({"kind": "quantise"}, "range/trainable/0", [0, np.inf], "not_finite"),
        ({"kind": "quantise"}, "range/trainable/0", [np.nan, 1], "not_finite"),
        ({"kind": "quantise"}, "range/trainable/0", [-3e38, 3e38], "not_finite"),
        ({"kind": "quantise"}, "range/trainable/0", [0, 1, 2], "wrong_shape"),
        ({"kind": "cast", "dtype": "bfloat16"}, "trainable/0", [0x7F80] * 64, "not_finite"),
        ({"kind": "cast", "dtype": "bfloat16"}, "trainable/0", [0xFFFF] * 64, "not_finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_undone_is_refused_with_a_reason(
    step: dict[str, Any], name: str, values: list[float], reason: str
) -> None:
    experiment, tensors = sent([step])
    forged = np.array(values).astype(tensors[name].dtype)
    if forged.size == tensors[name].size:
        forged = forged.reshape(tensors[name].shape)
    assert reason_for(experiment, {**tensors, name: forged}) == reason
