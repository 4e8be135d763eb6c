"""Fixtures for chaos with real processes."""

from tests.integration.conftest import start

__all__ = ["start"]
