"""A model that no message holds is refused before anything is trained, whatever the broker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.schemas import Experiment, Plan, UserError
from fluffle.schemas.tensors import Spec
from fluffle.worker.training.message_size import check_fits

#: 600 MB, and something small.
LARGE: Spec = {"trainable/0": ("float32", (1, 150_000_000)), "trainable/1": ("float32", (4,))}


def test_the_largest_weight_and_the_limit_are_named() -> None:
    with pytest.raises(UserError) as refused:
        check_fits(LARGE, lambda: {"trainable/0": "embedding/embeddings"})
    said = str(refused.value)
    assert "\n" not in said
    assert "600 MB as it travels, more than the 537 MB (512 MiB)" in said
    assert "embedding/embeddings, is 600 MB" in said


def test_what_a_strategy_sends_along_counts_and_what_fits_fits() -> None:
    half: Spec = {"trainable/0": ("float32", (100_000_000,))}
    check_fits(half)
    with pytest.raises(UserError, match="800 MB as it travels with what the strategy sends"):
        check_fits(half, copies=2)
    with pytest.raises(UserError, match="20,001 tensors that travel"):
        check_fits({f"trainable/{i}": ("float32", ()) for i in range(20_001)})


@pytest.mark.tensorflow
def test_a_run_says_so_before_it_begins_and_so_does_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a limit of 10 kB, and a model of 40 kB
    from fluffle.worker.tasks import registry
    from fluffle.worker.training.per_plan import make_trainer
    from fluffle.worker.training.trial import check

    monkeypatch.setattr("fluffle.worker.training.message_size.MAX_HEAD_BYTES", 100)
    monkeypatch.setattr("fluffle.worker.training.message_size.MAX_MESSAGE_BYTES", 10_000)
    (tmp_path / "large.py").write_text(
        """
import keras, numpy as np
from fluffle import Examples, Task

class Large(Task):
    def model(self):
        return keras.Sequential([
            keras.Input((8,)), keras.layers.Dense(1000, name="wide"), keras.layers.Dense(2)])
    def dataset(self):
        raise AssertionError("nothing is read")
    test = dataset
"""
    )
    registry.use(f"{tmp_path / 'large.py'}:Large", None)
    tables: dict[str, Any] = {"task": {"name": "large.py:Large", "clients": 2}}
    try:
        experiment = Experiment.model_validate(tables)
        for begin in (check, lambda e: make_trainer(Plan.of(e, "delta"))):
            with pytest.raises(UserError, match="wide/kernel, is 32 kB"):
                begin(experiment)
        # And what does not travel does not count
        frozen = Experiment.model_validate({**tables, "weights": {"freeze": ["wide/*"]}})
        sent = make_trainer(Plan.of(frozen, "delta")).initial()
        assert sum(np.asarray(a).nbytes for a in sent.values()) < 9_000
    finally:
        registry.use(None, None)
