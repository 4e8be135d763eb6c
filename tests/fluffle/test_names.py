"""Names that a person gives are such as messages, queues and terminals can carry."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fluffle.commands.app import app
from fluffle.schemas import UserError

NOWHERE = ("--broker", "amqp://nobody@127.0.0.1:9/", "--connect-timeout", "0")


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "[/red]", "x" * 300, "a b"])
@pytest.mark.parametrize("words", [("worker", "--name"), ("evaluator", "--name"),
                                   ("worker", "--federation")])  # fmt: skip
def test_a_name_that_nothing_can_carry_is_refused(words: tuple[str, ...], name: str) -> None:
    done = CliRunner().invoke(app, [*words, name, *NOWHERE])
    assert isinstance(done.exception, UserError)
    assert str(done.exception).startswith(f"{words[1]} ")
    assert str(done.exception).isprintable()
