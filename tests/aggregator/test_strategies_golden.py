"""Every strategy, step by step, against vectors made from the papers' equations.

The vectors in ``golden/*.json`` are written by ``golden/make.py``, which knows nothing of Fluffle.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.strategies.base import broadcast_of
from fluffle.aggregator.strategies.registry import make_strategy
from fluffle.schemas import ClientUpdate, Experiment, Run, Tensors
from fluffle.schemas.aggregation import strategies

GOLDEN = Path(__file__).parent / "golden"
STORIES = sorted(path.stem for path in GOLDEN.glob("*.json"))
RUN = Run(run_id="golden", run_started=0, epoch=1)


def tensors_of(story: dict[str, Any], values: dict[str, list[float]]) -> Tensors:
    return {
        key: np.array(values[key], dtype).reshape(shape)
        for key, (dtype, shape) in story["shapes"].items()
        if key in values
    }


def assert_equal_to_the_last_bits(got: Tensors, expected: Tensors) -> None:
    assert list(got) == list(expected)
    for key, array in got.items():
        assert array.dtype == expected[key].dtype
        assert array.shape == expected[key].shape
        if array.dtype == np.float32:
            np.testing.assert_array_max_ulp(array, expected[key], maxulp=1)
        else:
            np.testing.assert_allclose(array, expected[key], rtol=1e-13, atol=1e-15, err_msg=key)


def test_there_is_a_story_for_every_strategy_optimizer_and_staleness() -> None:
    told = [json.loads((GOLDEN / f"{name}.json").read_text())["aggregation"] for name in STORIES]
    assert {table["strategy"] for table in told} == set(strategies())
    assert {t.get("server_optimizer") for t in told if t["strategy"] == "fedbuff"} == {
        *("momentum", "adagrad", "adam", "yogi"),
        None,  # sgd
    }
    assert {t.get("staleness") for t in told if t["strategy"] == "fedbuff"} == {
        *("constant", "polynomial", "hinge"),
    }


@pytest.mark.parametrize("name", STORIES)
def test_every_version_is_the_one_that_the_paper_has(name: str) -> None:
    # Given the story's strategy, and its first model
    story = json.loads((GOLDEN / f"{name}.json").read_text())
    participation = {"mode": story.get("mode", "concurrent")}
    tables = {
        "training": {"optimizer": "sgd"},
        "participation": participation,
        "aggregation": story["aggregation"],
    }
    # A story names every parameter of s(tau), those too that its kind of s does not use.
    experiment = Experiment.stored(json.dumps(tables))
    strategy = make_strategy(experiment)
    state = strategy.init(tensors_of(story, story["initial"]))
    version = turn = 0

    for event in story["events"]:
        if "update" in event:
            # When an update arrives from a client that trained an older version
            turn += 1
            told = event["update"]
            update = ClientUpdate(
                run=RUN,
                update_id=f"u{turn}",
                client=told.get("client", "c"),
                turn=turn,
                base_version=told["base_version"],
                worker="w",
                sends=strategy.sends,
                examples=told["examples"],
                tensors=tensors_of(story, told["tensors"]),
            )
            staleness = version - update.base_version
            if experiment.max_staleness is None or staleness <= experiment.max_staleness:
                state = strategy.accept(state, update, staleness)
        else:
            # Then what goes out after each step is the paper's
            state = strategy.step(state)
            version += 1
            expected = tensors_of(story, event["step"])
            assert_equal_to_the_last_bits(broadcast_of(strategy, state), expected)
    assert version >= 7


def test_the_script_writes_these_files_and_no_others(tmp_path: Path) -> None:
    copy = tmp_path / "make.py"
    copy.write_bytes((GOLDEN / "make.py").read_bytes())
    subprocess.run([sys.executable, copy], check=True)
    for name in STORIES:
        assert (tmp_path / f"{name}.json").read_bytes() == (GOLDEN / f"{name}.json").read_bytes()
