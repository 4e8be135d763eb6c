"""Fixtures for all rooms: a RabbitMQ for the session, a federation for each test."""

from __future__ import annotations

import logging
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
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

#: What ``--fast`` leaves out.
SLOW = ("compose", "cluster", "network", "rabbitmq", "tensorflow", "slow")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help=f"nothing marked {', '.join(SLOW)}")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.fast:
        config.option.markexpr = f"not ({' or '.join(SLOW)})"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file of which nothing would run is not imported: TensorFlow alone takes seconds."""
    if not config.option.fast or collection_path.suffix != ".py":
        return None
    marks = re.search(r"^pytestmark = (.+?)(?=^\S|^$)", collection_path.read_text(), re.M | re.S)
    return True if marks and re.search(rf"mark\.({'|'.join(SLOW)})\b", marks[1]) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for a server is marked for it."""
    for item in items:
        if "rabbitmq" in getattr(item, "fixturenames", ()):
            parameters = getattr(getattr(item, "callspec", None), "params", {})
            if parameters.get("harness") != "embedded":
                item.add_marker("rabbitmq")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Whoever imports TensorFlow is marked for it, and no other."""
    before = sys.modules.get("tensorflow")
    result = yield
    if sys.modules.get("tensorflow") and not before and not item.get_closest_marker("tensorflow"):
        pytest.fail("it imports TensorFlow: mark it so")
    return result


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
