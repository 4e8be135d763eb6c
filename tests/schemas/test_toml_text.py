"""TOML that is written is TOML that is read."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.schemas import Experiment
from fluffle.schemas.toml_text import to_toml

_VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.integers(0, 9), max_size=3),
)
_TABLES = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), _VALUES, max_size=4)


@given(st.dictionaries(st.text("abc.- é", min_size=1), _TABLES | _VALUES, max_size=4))
def test_whatever_is_written_is_read_again(document: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(document)) == document


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"update": [{"kind": "clip", "norm": 1.0}, {"kind": "quantise", "bits": 8}]},
        {"task": {"name": "mine.py:Mine", "parameters": {"width": 8, "names": ["a", "b"]}}},
        {
            "training": {
                "local_schedule": {"kind": "cosine", "over": 9},
                "optimizer_parameters": {"beta_1": 0.5},
            }
        },
        {"participation": {"mode": "cohort", "sampling_rate": 0.3}, "evaluation": {"examples": 9}},
    ],
)
def test_an_experiment_that_is_written_is_the_same_when_it_is_read(tables: dict[str, Any]) -> None:
    experiment = Experiment.model_validate(tables)
    text = to_toml(experiment.model_dump(mode="json", exclude_none=True))
    assert Experiment.model_validate(tomllib.loads(text)) == experiment
