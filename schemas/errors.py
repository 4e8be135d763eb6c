"""The two errors that every room knows, and how to speak of those that a user's code raises."""

from __future__ import annotations

import threading
from contextlib import suppress


class UserError(Exception):
    """Something a person can mend: its text is one line that says what is wrong and what to do.

    The command line prints it and exits with code 2.
    """


class DecodeError(ValueError):
    """These bytes are no message of ours. The text says what was wrong, never more than a line."""


def printable(text: str, most: int) -> str:
    """One line of at most ``most`` characters that any file, terminal and message can take."""
    words = " ".join(str.__getitem__(text, slice(2 * most)).split())
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in words[:most]
    )[:most]


def describe(error: BaseException, most: int = 2000) -> str:
    """What an error says, by its kind and its text; a ``UserError`` by its text alone.

    For whatever a user's code raises: its text may be endless, no text at all, or raise itself.
    """
    text = "(it cannot say what)"
    with suppress(Exception, SystemExit, GeneratorExit):
        text = str(error)
    if not isinstance(error, UserError):
        text = f"{printable(type(error).__name__, 100)}: {printable(text, most)}"
    return printable(text, most)


def contained(error: BaseException) -> BaseException:
    """An error that a user's code has raised and that shall end nothing but what it was doing.

    ``SystemExit`` is one as well. Raises: KeyboardInterrupt where a person has pressed Ctrl-C.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and isinstance(error, KeyboardInterrupt):
        raise error
    return error
