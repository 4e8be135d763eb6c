"""What is logged is one line each, a flood a few, and only the command line shows any."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading

import pytest

from fluffle.logs import EVERY_S, FIRST, Lines, installed, written_by

_log = logging.getLogger("fluffle.test")


class Shown:
    """A handler whose lines are kept, and whose records have any time."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.handler = Lines("text")
        self.handler.write = self.lines.append
        self.handler.setFormatter(logging.Formatter())

    def log(self, at: float, text: str, **extra: object) -> None:
        record = logging.makeLogRecord({"msg": text, "created": at, **extra})
        self.handler.handle(record)


def test_the_first_few_of_each_kind_are_shown_and_the_rest_counted_now_and_then() -> None:
    # Given ten thousand bad messages of one kind, and one of another, within a second
    shown = Shown()
    for number in range(10_000):
        shown.log(1000.0, f"message {number}", kind="undecodable")
    shown.log(1000.5, "one of another kind", kind="forged")
    # Then only the first few were shown
    assert shown.lines == [*(f"message {i}" for i in range(FIRST)), "one of another kind"]
    # And how many more there were, before whatever comes when it is time to
    shown.log(1000.0 + EVERY_S, "version 7")
    more = "9997 more messages of these kinds: undecodable 9997"
    assert shown.lines[FIRST + 1 :] == [more, "version 7"]


def test_nothing_is_left_unsaid_at_the_end() -> None:
    shown = Shown()
    for number in range(FIRST + 1):
        shown.log(1.0, f"client {number} failed", kind="failed")
    shown.handler.close()
    assert shown.lines[-1] == "1 more messages of these kinds: failed 1"


def test_what_is_to_be_shown_seldom_is_and_what_has_no_kind_always() -> None:
    # Given a broker that is away for an hour, sought every ten seconds
    shown = Shown()
    for second in range(0, 3600, 10):
        shown.log(1e6 + second, "trying again", kind="lab-3: no connection", every_s=600)
        shown.log(1e6 + second, "training")
    # Then every training is shown, and a few attempts in ten minutes
    assert shown.lines.count("training") == 360
    assert shown.lines.count("trying again") == 6 * FIRST


def test_a_record_is_an_object_where_programs_read() -> None:
    lines: list[str] = []
    with installed("info", "json"), written_by(lines.append):
        _log.info("version %d\nis the last", 7)
        _log.debug("not shown")
        try:
            raise ValueError("broken")
        except ValueError:
            _log.exception("a bug")
    first, second = map(json.loads, lines)
    assert first["message"] == "version 7\nis the last"
    assert (first["level"], first["logger"]) == ("info", "fluffle.test")
    assert first["time"].endswith("Z")
    assert second["level"] == "error"
    assert "ValueError: broken" in second["error"]


def test_lines_of_many_threads_do_not_merge(capfd: pytest.CaptureFixture[str]) -> None:
    # Given threads that log at the same time
    def work(name: str) -> None:
        for _ in range(200):
            _log.info("%s", name * 60)

    with installed("info", "text"):
        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # Then each line is one thread's, and whole
    lines = [line.split(" ", 1)[1] for line in capfd.readouterr().out.splitlines()]
    assert sorted(lines) == sorted(name * 60 for name in "abcd" * 200)


def test_a_program_that_uses_the_library_sees_nothing_that_it_has_not_asked_for() -> None:
    script = (
        "import logging, fluffle\n"
        "logging.getLogger('fluffle.broker').error('trouble')\n"
        "print(logging.getLogger().handlers)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_installed_handlers_are_gone_afterwards() -> None:
    logger = logging.getLogger("fluffle")
    before = [*logger.handlers], logger.level, logger.propagate
    with installed("debug", "text"):
        assert logger.level == logging.DEBUG
    assert ([*logger.handlers], logger.level, logger.propagate) == before


def test_a_line_is_written_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given what several threads write to
    pieces: list[str] = []

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Out())
    # When something is logged
    with installed("info", "text"):
        _log.info("one")
        _log.info("two")
    # Then nobody can come between a line and its end
    assert [piece[-4:] for piece in pieces] == ["one\n", "two\n"]
