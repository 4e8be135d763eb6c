"""A sceptic: what became of a run, decided from its files and queues without a line of Fluffle's.

    python tests/chaos/sceptic.py RUN_FOLDER [--journal FILE …] [--broker amqp://…] [--cohort]

``fluffle verify`` and the code that it checks have an author, and perhaps a mistake, in common.
This file shares nothing with them but SQLite, and what docs/reliability.md promises. It decides

- **contiguity**: versions 0, 1, 2, … without a gap, by leaders whose epochs never go back, each
  with as many updates as it says, at the places 0, 1, 2, …, and the newest with its weights, whose
  hash is in their name;
- **exactly once**: of an update one row, in one version that there is; what is counted was not
  rejected for what is in it (a cohort's updates have one base version, so copies are alike); no
  client twice in a cohort's version; base version plus staleness is the version before;
- **balance**, with the workers' journals: all that the broker confirmed to a worker is in the
  ledger, rejected, set aside or still in a queue, and nothing is there that nobody sent. Queues are
  read without taking anything; without ``--broker`` what is not in the ledger counts as lost.

Exit code 0 where all holds, 1 where something does not, with a line for each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

UPDATE = "client-update"
#: A turn that is asked again may be trained from another state, or find another buffer or a run
#: that goes on: one copy of its update is rejected for this, and another counts. All else a
#: training cannot change.
OF_ONE_COPY = ("late", "repeated", "superseded", "too_soon", "too_stale")
QUEUES = ("updates", "updates.rejected")


def contiguity(db: sqlite3.Connection, folder: Path) -> Iterator[str]:
    """Versions follow each other, and are made of what they say."""
    rows = db.execute("SELECT version, epoch, updates, file FROM versions").fetchall()
    rows.sort()
    if [row[0] for row in rows] != list(range(len(rows))):
        yield f"versions are {[row[0] for row in rows]}, not 0 to {len(rows) - 1}"
    for (before, older, *_), (after, newer, *_) in pairwise(rows):
        if newer < older:
            yield f"version {after} is of epoch {newer}, version {before} before it of {older}"
    places: dict[int, list[int]] = {}
    query = "SELECT version, position FROM updates WHERE disposition = 'counted'"
    for version, position in db.execute(query):
        places.setdefault(version, []).append(position)
    for version, _, updates, _ in rows:
        found = sorted(places.pop(version, []))
        if found != list(range(updates)):
            yield f"version {version} says {updates} updates, and has those at {found}"
    for version, found in places.items():
        yield f"{len(found)} updates are counted in version {version}, which there is not"
    if rows:
        yield from _weights(folder / "weights" / rows[-1][3])


def _weights(file: Path) -> Iterator[str]:
    if not file.is_file():
        yield f"the newest version's weights are not there: {file.name}"
        return
    told = re.search(r"-([0-9a-f]{16})\.", file.name)
    if told is None or not hashlib.sha256(file.read_bytes()).hexdigest().startswith(told[1]):
        yield f"{file.name} has not the hash that is in its name"


def exactly_once(db: sqlite3.Connection, cohort: bool) -> Iterator[str]:
    """No update counts twice, or in a version that it cannot be in."""
    query = "SELECT update_id, disposition, version, client, base_version, staleness FROM updates"
    rows = db.execute(f"{query} WHERE turn > 0").fetchall()
    for update, times in Counter(row[0] for row in rows).items():
        if times > 1:
            yield f"update {update} has {times} rows"
    reasons = db.execute("SELECT message_id, reason FROM rejections")
    rejected = {one for one, reason in reasons if reason not in OF_ONE_COPY}
    for update, disposition, version, client, base, staleness in rows:
        if disposition not in ("counted", "buffered", "unused"):
            yield f"update {update} is {disposition!r}"
        if disposition == "counted" and base + staleness != version - 1:
            yield (
                f"update {update} of {client}: base {base} and staleness {staleness} in {version}"
            )
        if cohort and disposition == "counted" and update in rejected:
            yield f"update {update} is counted in version {version} and rejected"
    if cohort:
        pairs = Counter((row[2], row[3]) for row in rows if row[1] == "counted")
        for (version, client), times in pairs.items():
            if times > 1:
                yield f"client {client} counts {times} times in version {version}"


def balance(db: sqlite3.Connection, journals: Iterable[Path], queued: set[str]) -> Iterator[str]:
    """What workers had confirmed is somewhere, and what is somewhere they had sent."""
    sent: Counter[str] = Counter()
    confirmed: Counter[str] = Counter()
    for journal in journals:
        for text in journal.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the last line of a worker that was killed while it wrote
            if line.get("type") == UPDATE:
                {"sending": sent, "confirmed": confirmed}[line["what"]][line["update_id"]] += 1
    ours = {one for (one,) in db.execute("SELECT update_id FROM updates")}
    trained = {one for (one,) in db.execute("SELECT update_id FROM updates WHERE turn > 0")}
    rejected = {one for (one,) in db.execute("SELECT message_id FROM rejections")}
    for update in sorted(confirmed.keys() - ours - rejected - queued):
        yield f"update {update} was confirmed {confirmed[update]} times, and is nowhere"
    for update in sorted(trained - sent.keys()):
        yield f"update {update} is in the ledger, and nobody sent it"


def in_queues(url: str, federation: str) -> set[str]:
    """The ids of updates in the queues, which stay there."""
    import pika

    found: set[str] = set()
    with closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel: Any = connection.channel()
        for queue in QUEUES:
            while True:
                method, properties, _ = channel.basic_get(f"{federation}.{queue}")
                if method is None:
                    break
                if properties.type == UPDATE:
                    found.add(str(properties.message_id))
    return found


def doubts(
    folder: Path,
    journals: Iterable[Path] = (),
    queued: set[str] | None = None,
    cohort: bool = False,
) -> list[str]:
    """All that does not hold, a line each; empty where nothing is wrong."""
    file = folder / "ledger.sqlite"
    if not file.is_file():
        return [f"there is no ledger in {folder}"]
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        try:
            (whole,) = db.execute("PRAGMA integrity_check(1)").fetchone()
            if whole != "ok":
                return [f"SQLite finds the ledger damaged: {whole}"]
            found = [*contiguity(db, folder), *exactly_once(db, cohort)]
            journals = list(journals)
            if journals:
                found += balance(db, journals, queued or set())
            return found
        except sqlite3.DatabaseError as error:
            return [f"the ledger cannot be read: {error}"]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--journal", type=Path, action="append", default=[])
    parser.add_argument("--broker", default="")
    parser.add_argument("--federation", default="fluffle")
    parser.add_argument("--cohort", action="store_true", help="participation.mode is cohort")
    given = parser.parse_args()
    queued = in_queues(given.broker, given.federation) if given.broker else None
    found = doubts(given.folder, given.journal, queued, given.cohort)
    print("\n".join(found) or "nothing to doubt")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
