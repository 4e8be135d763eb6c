"""Power is lost while a real aggregator works: what was not synced is gone or torn.

One run on a real broker is traced, system call by system call. From the trace come the folders that
a loss of power could have left at any moment, and each has to hold what the broker was told until
then: updates that were acked, versions that were published.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fluffle.aggregator.ledger.reader import LEDGER, LedgerReader
from fluffle.aggregator.ledger.record import FILES
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.verify import verify
from fluffle.broker.admin.node import Node
from fluffle.broker.topology import Topology
from fluffle.schemas import UserError
from tests.chaos.power.disk import Disk, put
from tests.chaos.power.trace import COMMAND, Event, Synced, Told, events
from tests.integration.processes import Start, Started, verified

pytestmark = [
    *(pytest.mark.rabbitmq, pytest.mark.tensorflow, pytest.mark.slow),
    pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace here"),
]

EXPERIMENT = """
[experiment]
name = "power"
versions = 8
[task]
name = "synthetic-lr"
clients = 6
[aggregation]
quorum = 3
keep_updates = true
hold_s = 0.2
[evaluation]
every_updates = 0
"""
#: Torn folders for each moment, beside the one that has nothing but what was synced.
TORN = 2


@dataclass(frozen=True)
class Recording:
    """What an aggregator did from the beginning to the end of its run."""

    root: Path
    events: list[Event]


@pytest.fixture(scope="module")
def recording(rabbitmq: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "experiment.toml").write_text(EXPERIMENT)
    where = ["--broker", rabbitmq.url, "--federation", "power"]
    lead = ["aggregator", str(folder / "experiment.toml"), *where, "--out", str(folder / "out")]
    aggregator = Started(lead, folder / "lead.log", under=(*COMMAND, str(folder / "trace")))
    worker = Started(["worker", *where, "--slots", "2"], folder / "worker.log")
    try:
        assert aggregator.wait() == 0, aggregator.output
        assert worker.wait() == 0, worker.output
        done = events(folder / "trace", folder / "out", Topology("power").global_model)
        yield Recording(folder / "out", done)
    finally:
        for one in (aggregator, worker):
            one.kill()


def moments(recording: Recording, happened: list[Event]) -> Iterator[Disk]:
    """Before anything becomes durable or is told, and after it was told: when most is at stake."""
    disk = Disk(recording.root)
    for event in happened:
        if isinstance(event, (Synced, Told)):
            yield disk
        disk.apply(event)
        if isinstance(event, Told):
            yield disk


def wrong(disk: Disk, folder: Path) -> str | None:
    """What is not as the broker was told, in a folder that a loss of power has left."""
    for name in FILES:
        if (folder / name).exists() and not (folder / name).read_bytes():
            return f"{name} is empty"
    if not (folder / LEDGER).exists():
        return "there is no ledger" if disk.acked or disk.version >= 0 else None
    try:
        ledger = Ledger(folder)  # as an aggregator opens it
        begun = bool(ledger.meta)
        if begun:
            ledger.load()
        ledger.close()
        if not begun:
            return "the ledger is empty" if disk.acked or disk.version >= 0 else None
        reader = LedgerReader(folder)
        found = verify(reader)
        gone = sorted(one for one in disk.acked if not reader.seen(one))
        latest = reader.latest_version()
        reader.close()
    except UserError as error:
        return str(error)
    if gone:
        return f"acked and not in the ledger: {gone}"
    if latest < disk.version:
        return f"version {disk.version} was published, and the ledger ends with {latest}"
    return found[0] if found else None


def losses(recording: Recording, happened: list[Event], place: Path) -> Iterator[str]:
    """Everything that is wrong in any folder that could have been left."""
    tried: set[int] = set()
    for number, disk in enumerate(moments(recording, happened)):
        chances = [None, *(random.Random(f"{number}:{i}") for i in range(TORN))]
        for chance in chances:
            left = disk.left(chance)
            # The same bytes, but more may have been told since
            same = hash((frozenset(left.items()), len(disk.acked), disk.version))
            if same in tried:
                continue
            tried.add(same)
            folder = put(left, place / str(len(tried)))
            if (loss := wrong(disk, folder)) is not None:
                yield loss
            shutil.rmtree(folder)
    assert len(tried) > 100, "hardly anything was tried"


def test_no_loss_of_power_takes_what_the_broker_was_told(
    recording: Recording, tmp_path: Path
) -> None:
    told = [event for event in recording.events if isinstance(event, Told)]
    # Given a trace in which every update was acked, and every version published
    assert sum(len(one.acked) for one in told) >= 25
    assert {one.version for one in told} >= set(range(9))
    # Then whatever could have been left at any moment has them
    assert list(losses(recording, recording.events, tmp_path)) == []


@pytest.mark.parametrize(
    ("forgotten", "says"),
    [
        (lambda path: path.name.endswith("-wal"), "the ledger is empty|acked and not in"),
        (lambda path: path.parent.name == "weights", "is damaged|cannot read"),
        (lambda path: path.name == "weights", "cannot read"),
        (lambda path: path.parent.name == "updates", "kept"),
        (lambda path: path.name == ".environment.json.new", "environment.json is empty"),
    ],
    ids=["commits", "weights", "names of weights", "kept updates", "record"],
)
def test_an_aggregator_that_does_not_sync_is_found_out(
    recording: Recording, tmp_path: Path, forgotten: Callable[[Path], bool], says: str
) -> None:
    # Given the same, but one kind of thing was never made durable
    happened = [
        event
        for event in recording.events
        if not (isinstance(event, Synced) and forgotten(event.path))
    ]
    # Then there is a moment at which a loss of power takes something
    found = losses(recording, happened, tmp_path)
    assert any(re.search(says, line) for line in found)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_real_aggregator_goes_on_from_what_was_left(
    recording: Recording, rabbitmq: Node, start: Start, tmp_path: Path, share: float
) -> None:
    # Given a folder that a loss of power has left in the middle of the run, torn
    disk = Disk(recording.root)
    for event in recording.events[: round(share * len(recording.events))]:
        disk.apply(event)
    out = put(disk.left(random.Random(share)), tmp_path / "out")
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    # When an aggregator is started on it again
    where = ("--broker", rabbitmq.url, "--federation", f"power-{share}")
    aggregator = start("aggregator", tmp_path / "experiment.toml", *where, "--out", out)
    start("worker", *where, "--slots", 2)
    # Then it resumes, and the run is whole
    assert aggregator.wait() == 0, aggregator.output
    assert "resuming at version" in aggregator.output
    verified(start, out, "--replay")
