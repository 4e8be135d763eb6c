"""Fixtures for all rooms: a private RabbitMQ for the session, a federation for each test."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from broker.node import Node, find_server
from schemas.errors import UserError


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[Node]:
    """A running server. Without one on this machine: skipped on a laptop, a failure in CI."""
    try:
        find_server()
    except UserError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with Node() as node:
        yield node


@pytest.fixture
def federation() -> str:
    """A name that no other test uses, so that tests share a server and nothing on it."""
    return f"test-{secrets.token_hex(4)}"
