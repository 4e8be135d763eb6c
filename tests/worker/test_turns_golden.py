"""Whole turns of clients, against vectors made from the papers' equations.

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

pytest.importorskip("tensorflow")

import keras
from keras import layers

from fluffle.schemas import Experiment, Plan, Tensors
from fluffle.schemas.algorithms import ALGORITHMS, OF_STRATEGY
from fluffle.worker.tasks.registry import TASKS
from fluffle.worker.tasks.task import Examples, Task
from fluffle.worker.training.per_plan import make_trainer

pytestmark = pytest.mark.tensorflow

GOLDEN = Path(__file__).parent / "golden"
STORIES = sorted(path.stem for path in GOLDEN.glob("*.json"))
PATHS = {"a": "body/kernel", "b": "body/bias", "c": "head/kernel", "d": "head/bias"}


def story_of(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


class Six(Task):
    """The six examples of all stories."""

    def model(self) -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((3,)),
                layers.Dense(4, activation="tanh", name="body"),
                layers.Dense(3, activation="softmax", name="head"),
            ]
        )

    def dataset(self) -> Examples:
        story = story_of(STORIES[0])
        return Examples(np.array(story["x"], np.float32), np.array(story["y"]))

    test = dataset


def split(story: Any, values: list[float], group: str, paths: bool = False) -> Tensors:
    """A point, or its end, as named tensors."""
    found: Tensors = {}
    shapes = list(story["shapes"].items())
    sizes = [int(np.prod(shape)) for _, shape in shapes]
    first = next(i for i in range(4) if sum(sizes[i:]) == len(values))
    for i, ((name, shape), size) in enumerate(zip(shapes, sizes, strict=True)):
        if i >= first:
            key = PATHS[name] if paths else str(i)
            found[f"{group}/{key}"] = np.array(values[:size], np.float32).reshape(shape)
            values = values[size:]
    return found


def compare(found: Tensors, expected: Tensors) -> None:
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=3e-6, err_msg=name)


def test_there_is_a_story_for_every_algorithm() -> None:
    told = {name.partition("-")[0] for name in STORIES}
    assert told == {*ALGORITHMS, *OF_STRATEGY}


@pytest.mark.parametrize("name", STORIES)
def test_every_turn_is_the_one_that_the_paper_has(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the story's plan
    monkeypatch.setitem(TASKS, "six", Six)
    story = story_of(name)
    tables = {
        "task": {"name": "six", "clients": 1},
        "training": {"optimizer": "sgd", **story["training"]},
        "weights": story.get("weights"),
    }
    plan = Plan.of(Experiment.model_validate(tables), "delta", story.get("asks"))
    trainer, state = make_trainer(plan), dict[str, Any]()
    personal = "weights" in story
    if personal:
        # The head at first is the model's own, and the story has another.
        first = split(story, story["turns"][0]["base"], "personal/trainable", True)
        state = {key: array for key, array in first.items() if "head" in key}
    for number, turn in enumerate(story["turns"], start=1):
        # When the client trains
        base = split(story, turn["base"], "trainable", personal)
        if personal:
            base = {key: array for key, array in base.items() if "body" in key}
        for key, values in turn["broadcast"].items():
            base |= (
                {"feddyn/alpha": np.array(values[0])}
                if key == "alpha"
                else split(story, values, key)
            )
        found = trainer.train(base, "0", number, None, state)
        # Then its model, what it sends besides and what it keeps are the paper's
        local = split(story, turn["local"], "trainable", personal)
        compare(found.tensors, {k: a for k, a in local.items() if k in base})
        assert set(found.tensors) == {k for k in base if k.startswith("trainable/")}
        sent: Tensors = {}
        for key, values in turn["sent"].items():
            sent |= (
                {"fednova/norm": np.array(values[0])}
                if key == "norm"
                else split(story, values, key)
            )
        compare(found.extra, sent)
        assert set(found.extra) == set(sent)
        kept: Tensors = {}
        for key, values in turn["kept"].items():
            group = {"head": "personal/trainable", "ditto": "ditto/trainable"}.get(key, key)
            kept |= split(story, values, group, personal)
        compare(found.state, kept)
        assert set(found.state) == set(kept)
        state = found.state
    assert number == 3


def test_the_script_writes_these_files_and_no_others(tmp_path: Path) -> None:
    copy = tmp_path / "make.py"
    copy.write_bytes((GOLDEN / "make.py").read_bytes())
    subprocess.run([sys.executable, copy], check=True)
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == STORIES
    for name in STORIES:
        assert json.loads((tmp_path / f"{name}.json").read_text()) == story_of(name)
