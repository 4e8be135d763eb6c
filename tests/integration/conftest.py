"""Fixtures for tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.processes import EXPERIMENT, Start, Started


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts ``fluffle …``; whatever is left is killed when the test ends."""
    started: list[Started] = []

    def begin(*arguments: object) -> Started:
        log = tmp_path / f"{len(started)}-{arguments[0]}.log"
        started.append(Started([str(a) for a in arguments], log))
        return started[-1]

    yield begin
    for one in started:
        one.kill()
        one.wait()


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return path
