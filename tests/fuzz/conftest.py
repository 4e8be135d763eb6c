"""Fixtures for hostile messages: real processes."""

from tests.integration.conftest import start as start
