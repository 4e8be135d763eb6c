"""Fixtures for all rooms: a RabbitMQ for the session, a federation for each test."""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
from collections.abc import Generator, Iterator
from urllib.parse import urlsplit

import pytest
from hypothesis import settings

from fluffle.broker.admin.node import Node, find_server
from fluffle.schemas.errors import UserError

# A busy machine is no reason to fail.
settings.register_profile("fluffle", deadline=None)
settings.load_profile("fluffle")

#: Set by ``make test`` where the machine has no server of its own but runs one in a container.
CONTAINER = "FLUFFLE_TEST_BROKER"


class Container:
    """The server in the container that ``scripts/provide-rabbitmq`` has started."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.tcp_port = urlsplit(url).port or 5672

    def ctl(self, *arguments: str) -> str:
        """What ``rabbitmqctl`` with these arguments prints."""
        command = ["docker", "exec", "fluffle-test-rabbitmq", "rabbitmqctl", "--quiet", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[Node | Container]:
    """A running server: a private node, else the container's."""
    if os.environ.get(CONTAINER):
        yield Container(os.environ[CONTAINER])
    else:
        with Node() as node:
            yield node


@pytest.fixture
def federation() -> str:
    """A name that no other test uses, so that tests share a server and nothing on it."""
    return f"test-{secrets.token_hex(4)}"


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What Fluffle logs during a test, from any thread: the messages."""
    handler, logger = _Said(), logging.getLogger("fluffle")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """A command that a test or a fixture runs in this process leaves no variable for the next."""
    before = dict(os.environ)
    try:
        return (yield)
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Generator[None, object, object]:
    return (yield from _skip_without_a_server())


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    return (yield from _skip_without_a_server())


def _skip_without_a_server() -> Generator[None, object, object]:
    """Tests that start nodes of their own: skipped on a laptop without a server, failed in CI."""
    try:
        return (yield)
    except UserError:
        try:
            find_server()
        except UserError as error:
            if not os.environ.get("CI"):
                pytest.skip(str(error))
        raise
