"""Log records of ``fluffle`` as lines: only the command line installs this, a library user's
program has handlers of its own.

    logging.getLogger(__name__) ─> RateLimit (of each kind a few in a while) ─> Lines ─> one line
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Format = Literal["text", "json"]
LEVELS = ("debug", "info", "warning", "error")
#: Of a kind, within a while.
FIRST = 3
EVERY_S = 30.0


class RateLimit(logging.Filter):
    """The first few records of a kind pass, then none until ``every_s`` seconds are over.

    A record has a kind where ``extra`` says so: ``{"kind": "forged", "every_s": 600}``; without one
    it always passes. Ten thousand bad messages must not hide everything else.
    """

    def __init__(self) -> None:
        super().__init__()
        self._began: dict[str, float] = {}
        self._passed: Counter[str] = Counter()
        self._more: Counter[str] = Counter()
        self._held_since = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it passes."""
        kind = getattr(record, "kind", None)
        if kind is None:
            return True
        if record.created - self._began.get(kind, 0.0) >= getattr(record, "every_s", EVERY_S):
            self._began[kind], self._passed[kind] = record.created, 0
        self._passed[kind] += 1
        if self._passed[kind] <= FIRST:
            return True
        if not self._more:
            self._held_since = record.created
        self._more[kind] += 1
        return False

    def held_back(self, now: float) -> str:
        """One line on what did not pass, when it is time for one; else nothing. now: seconds."""
        if not self._more or now - self._held_since < EVERY_S:
            return ""
        kinds = ", ".join(f"{kind} {count}" for kind, count in self._more.most_common())
        text = f"{self._more.total()} more messages of these kinds: {kinds}"
        self._more.clear()
        return text


class Text(logging.Formatter):
    """The time of day and the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")


class Json(logging.Formatter):
    """One object a line: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``; ``error``
    is a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The object as JSON."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class Lines(logging.Handler):
    """Hands each record to ``write`` as one line; lines of two threads come one after the other."""

    def __init__(self, form: Format) -> None:
        super().__init__()
        self.form = form
        self.write: Callable[[str], None] = _to_stdout
        self.setFormatter(Json() if form == "json" else Text())
        self._limit = RateLimit()
        self.addFilter(self._limit)

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, after a line on what was held back."""
        try:
            self._tell_held_back(record.created)
            self.write(self.format(record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Nothing held back stays unsaid."""
        with self.lock:  # type: ignore[union-attr]
            self._tell_held_back(float("inf"))
        super().close()

    def _tell_held_back(self, now: float) -> None:
        if text := self._limit.held_back(now):
            told = {"name": __name__, "levelname": "WARNING", "levelno": logging.WARNING}
            self.write(self.format(logging.makeLogRecord({**told, "msg": text})))


@contextmanager
def installed(level: str, form: Format) -> Iterator[Lines]:
    """Within, what ``fluffle`` logs at this level or above is on stdout, and nowhere else."""
    logger = logging.getLogger("fluffle")
    before = logger.level, logger.propagate
    lines = Lines(form)
    logger.addHandler(lines)
    logger.setLevel(level.upper())
    logger.propagate = False  # TensorFlow's import gives the root a handler
    try:
        yield lines
    finally:
        logger.removeHandler(lines)
        lines.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]


@contextmanager
def written_by(write: Callable[[str], None]) -> Iterator[Format]:
    """Within, installed lines go there; what they look like."""
    found = [h for h in logging.getLogger("fluffle").handlers if isinstance(h, Lines)]
    before = [handler.write for handler in found]
    for handler in found:
        handler.write = write
    try:
        yield found[0].form if found else "text"
    finally:
        for handler, old in zip(found, before, strict=True):
            handler.write = old


@contextmanager
def silenced(logger: logging.Logger) -> Iterator[None]:
    """Within, this logger logs nothing."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _to_stdout(line: str) -> None:
    # In one piece: print() writes the end of a line by itself, and another thread comes between.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
