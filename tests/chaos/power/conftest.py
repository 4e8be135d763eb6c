"""Fixtures for tests of what a disk does."""

from tests.integration.conftest import start

__all__ = ["start"]
