"""The project's containers, built and started once for all tests here."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.stack import Stack


def _engine_answers() -> bool:
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=60).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="session")
def engine() -> None:
    """Without one tests are skipped; in CI they fail."""
    if not _engine_answers():
        missing = "no Docker engine answers"
        raise AssertionError(missing) if os.environ.get("CI") else pytest.skip.Exception(missing)


@pytest.fixture(scope="session")
def stack(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Three workers, an evaluator and an aggregator at work on a long run.

    test_run.py, which comes last, takes it down.
    """
    settings: Path = tmp_path_factory.mktemp("compose") / "settings.env"
    one = Stack(f"fluffle-test-{secrets.token_hex(3)}", settings)
    try:
        one.configure(FLUFFLE_EXPERIMENT__VERSIONS=100_000)
        one.compose("build", timeout_s=900.0)
        one.compose("up", "--detach", "--scale", "worker=3")
        one.wait_for("version 3", lambda: one.version() >= 3)
        yield one
    finally:
        one.remove()
